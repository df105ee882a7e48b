"""Prefix reuse as a client sees it: less to compute, the same answers, tenants apart."""
import json
import re
import socket
import unittest
import urllib.request

from harness import Server, request, run

PROMPT = "Once upon a time there was a little fox who lived in the garden behind the old house. " * 3


def ask(server, prompt, **fields):
    return server.inference.Complete(request(prompt, temperature=0, max_tokens=12, logprobs=2, **fields), timeout=60)


def told(response):
    return [(t.id, t.logprob, t.rank, [(o.id, o.logprob) for o in t.top]) for t in response.choices[0].tokens]


class TestPrefix(unittest.TestCase):
    def test_second_request_begins_behind_the_first(self):
        """Bit-equal answers on a miss and on a hit, on one rank and where lanes share heads; salts keep apart."""
        for ranks in ("1", "3"):
            with Server("-tp", ranks) as server:
                first = ask(server, PROMPT)
                n = first.usage.prompt_tokens
                self.assertEqual(first.usage.cached_tokens, 0)
                again = ask(server, PROMPT)
                self.assertGreaterEqual(again.usage.cached_tokens, (n - 1) // 16 * 16)
                self.assertLess(again.usage.cached_tokens, n)
                self.assertEqual(told(again), told(first))
                longer = ask(server, PROMPT + "And then")
                self.assertGreaterEqual(longer.usage.cached_tokens, (n - 1) // 16 * 16 - 16)
                other = ask(server, PROMPT, cache_salt="another tenant")
                self.assertEqual(other.usage.cached_tokens, 0)
                self.assertEqual(told(other), told(first))

    def test_samples_share_their_prompt(self):
        """Of n samples the first computes the prompt; all draw as they would alone."""
        with Server("-tp", "1") as server, Server("-tp", "1", "--no-enable-prefix-caching") as without:
            fields = dict(temperature=1.0, seed=3, n=4, max_tokens=16)
            together = server.inference.Complete(request(PROMPT, **fields), timeout=60)
            alone = without.inference.Complete(request(PROMPT, **fields), timeout=60)
            self.assertEqual([[t.id for t in c.tokens] for c in together.choices],
                             [[t.id for t in c.tokens] for c in alone.choices])
            self.assertEqual(without.inference.Complete(request(PROMPT, **fields), timeout=60).usage.cached_tokens, 0)

    def test_stream_metrics_and_command_line(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            http = "%s:%d" % free.getsockname()
        with Server("-tp", "1", "--http", http) as server:
            ask(server, PROMPT)
            events = list(server.inference.Generate(request(PROMPT, temperature=0, max_tokens=4), timeout=60))
            self.assertEqual(events[0].WhichOneof("event"), "prompt")
            self.assertGreater(events[0].prompt.cached_tokens, 0)
            self.assertEqual(events[-1].usage.cached_tokens, events[0].prompt.cached_tokens)
            mine = run("generate", "--address", server.address, "--cache-salt", "mine", "--max-tokens", "2", "--json", PROMPT)
            self.assertEqual(json.loads(mine.stdout)["usage"]["cached_tokens"], 0)
            with urllib.request.urlopen(f"http://{http}/metrics", timeout=10) as page:
                text = page.read().decode()
            count = {name: float(re.search(rf"^kvasir_prefix_cache_{name}_total\{{.*\}} (\S+)$", text, re.M).group(1))
                     for name in ("queries", "hits")}
            self.assertEqual(count["hits"], events[0].prompt.cached_tokens)
            self.assertGreater(count["queries"], 2 * count["hits"])


if __name__ == "__main__":
    unittest.main()
