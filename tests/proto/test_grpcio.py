"""An independent client: Python's grpcio against proto/rpc and proto/wire.

usage: test_grpcio.py SERVER PROTO_DIRECTORY

SERVER is the program made from grpcio_server.c. Stubs are generated into a temporary directory by
protoc and grpc_python_plugin, as a user of the .proto files would.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool

GRPC_PROTO = "/usr/share/grpc-proto"
OURS = ["kvasir/v1/batch.proto", "kvasir/v1/cluster.proto", "kvasir/v1/inference.proto",
        "kvasir/v1/worker_link.proto"]
THEIRS = ["grpc/health/v1/health.proto", "grpc/reflection/v1/reflection.proto",
          "grpc/reflection/v1alpha/reflection.proto"]
SERVICES = {"kvasir.v1.Inference", "kvasir.v1.Cluster", "kvasir.v1.Batch", "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}


def generate_stubs(proto, out):
    plugin = shutil.which("grpc_python_plugin")
    subprocess.run(["protoc", "-I", proto, "-I", GRPC_PROTO, f"--python_out={out}", f"--grpc_out={out}",
                    f"--plugin=protoc-gen-grpc={plugin}", *OURS, *THEIRS], check=True)
    sys.path.insert(0, out)
    # The generated package grpc/ has the name of the installed one: they become one package.
    grpc.__path__.append(os.path.join(out, "grpc"))


class Server:
    """The program under test, and channels to it."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline().split()
        assert line[:1] == ["listening"], line
        self.address = line[1]

    def channel(self, **kwargs):
        return grpc.insecure_channel(self.address, **kwargs)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


class GrpcioTest(unittest.TestCase):
    program = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.program)
        cls.channel = cls.server.channel()
        cls.inference = inference_grpc.InferenceStub(cls.channel)
        cls.cluster = cluster_grpc.ClusterStub(cls.channel)
        cls.health = health_grpc.HealthStub(cls.channel)

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        code = cls.server.stop()
        assert code == 0, f"the server ended with {code}"

    def status(self):
        return self.cluster.GetStatus(cluster.GetStatusRequest(), timeout=10)

    def fails(self, code, call, *args, **kwargs):
        with self.assertRaises(grpc.RpcError) as caught:
            call(*args, **kwargs)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception

    # ---- calls ----

    def test_stream_arrives_whole_and_in_order(self):
        messages = list(self.inference.Generate(inference.GenerateRequest(prompt="count 3000"), timeout=30))
        self.assertEqual(len(messages), 3001)
        tokens = [m.token for m in messages[:-1]]
        self.assertEqual([t.seq for t in tokens], list(range(3000)))
        self.assertEqual([t.tokens[0].id for t in tokens], [7 * i for i in range(3000)])
        self.assertEqual("".join(t.text for t in tokens[:4]), "wind caf\u00e9 \u65e5\u672c \U0001f30a ")
        self.assertTrue(tokens[0].tokens[0].HasField("logprob"))
        last = messages[-1]
        self.assertEqual(last.WhichOneof("event"), "finished")
        self.assertEqual(last.finished.reason, inference.Finished.STOP)
        self.assertEqual(last.finished.WhichOneof("stopped_by"), "stop_text")
        self.assertEqual(last.usage.completion_tokens, 3000)

    def test_unary_sees_presence_and_defaults(self):
        text = self.inference.Complete(inference.GenerateRequest(prompt="caf\u00e9")).choices[0].text
        self.assertEqual(text, "prompt=text:5 temperature=1 top_p=1 n=1 max_tokens=16 seed=absent:0 "
                               "skip_special_tokens=1 logprobs=absent:0 stop=0 priority=0")
        request = inference.GenerateRequest(request_id="abc", prompt_token_ids={"ids": [1, 2, 300]}, priority=-3)
        request.sampling.temperature = 0
        request.sampling.top_p = 0.5
        request.sampling.n = 2
        request.sampling.seed = 0
        request.stopping.max_tokens = 7
        request.stopping.stop.extend(["a", "b"])
        request.output.skip_special_tokens = False
        request.output.logprobs = 0
        answer = self.inference.Complete(request)
        self.assertEqual(answer.request_id, "abc")
        self.assertEqual(answer.choices[0].text, "prompt=tokens:3 temperature=0 top_p=0.5 n=2 max_tokens=7 "
                         "seed=0 skip_special_tokens=0 logprobs=0 stop=2 priority=-3")
        chat = inference.GenerateRequest()
        chat.messages.messages.add(role="user", content="hi")
        self.assertTrue(self.inference.Complete(chat).choices[0].text.startswith("prompt=messages:1 "))

    def test_status_and_trailers(self):
        error = self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, self.inference.Complete,
                           inference.GenerateRequest(prompt="full"))
        self.assertEqual(error.details(), "queue is full: 7 of 7 (caf\u00e9)")
        self.assertIn(("retry-after-ms", "250"), [tuple(pair) for pair in error.trailing_metadata()])

    def test_unimplemented_says_what(self):
        error = self.fails(grpc.StatusCode.UNIMPLEMENTED, batch_grpc.BatchStub(self.channel).GetBatch,
                           batch.GetBatchRequest(id="x"))
        self.assertEqual(error.details(), "batch jobs are not built yet")
        self.fails(grpc.StatusCode.UNIMPLEMENTED, batch_grpc.BatchStub(self.channel).CreateBatch,
                   iter([batch.CreateBatchRequest(chunk=b"{}\n")]))
        error = self.fails(grpc.StatusCode.UNIMPLEMENTED,
                           self.channel.unary_unary("/kvasir.v1.Inference/Nope"), b"")
        self.assertIn("/kvasir.v1.Inference/Nope", error.details())

    def test_bad_bytes_name_the_field(self):
        raw = self.channel.unary_unary("/kvasir.v1.Inference/Complete")
        error = self.fails(grpc.StatusCode.INVALID_ARGUMENT, raw, b"\x1a\x03ab\xff")
        self.assertEqual(error.details(), "prompt: not UTF-8 at byte 2")
        error = self.fails(grpc.StatusCode.INVALID_ARGUMENT, raw, b"\x1a\x03ab")
        self.assertIn("malformed", error.details())
        bomb = self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, raw,
                          b"\x32\x80\x80\x40" + b"\x62\x00" * (1 << 19))
        self.assertIn("memory", bomb.details())

    def test_client_without_message_or_with_two(self):
        raw = self.channel.stream_unary("/kvasir.v1.Inference/Complete")
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, raw, iter([]))
        self.fails(grpc.StatusCode.INVALID_ARGUMENT, raw, iter([b"", b""]))

    def test_message_over_the_limit(self):
        request = inference.GenerateRequest(prompt="x" * (4 << 20))
        self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, self.inference.Complete, request)

    def test_compressed_requests(self):
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            request = inference.GenerateRequest(prompt="x" * 100000)
            answer = self.inference.Complete(request, compression=algorithm)
            self.assertIn("prompt=text:100000 ", answer.choices[0].text)
        bomb = inference.GenerateRequest(prompt="x" * (64 << 20))
        error = self.fails(grpc.StatusCode.RESOURCE_EXHAUSTED, self.inference.Complete, bomb,
                           compression=grpc.Compression.Gzip)
        self.assertIn("decompressed", error.details())

    def test_many_streams_at_once(self):
        calls = [self.inference.Generate(inference.GenerateRequest(prompt=f"count {i}"), timeout=30)
                 for i in range(100)]
        for i, call in enumerate(calls):
            self.assertEqual(sum(1 for _ in call), i + 1)

    # ---- ends ----

    def test_cancellation_reaches_the_server(self):
        before = self.status().requests_total
        call = self.inference.Generate(inference.GenerateRequest(prompt="forever"))
        self.assertEqual(next(call).token.seq, 0)
        self.assertEqual(self.status().requests_running, 1)
        call.cancel()
        self.assertTrue(wait_until(lambda: self.status().requests_running == 0))
        self.assertEqual(self.status().requests_total, before + 1)
        self.assertEqual(call.code(), grpc.StatusCode.CANCELLED)

    def test_closed_channel_reaches_the_server(self):
        channel = self.server.channel()
        call = inference_grpc.InferenceStub(channel).Generate(inference.GenerateRequest(prompt="forever"))
        next(call)
        channel.close()
        self.assertTrue(wait_until(lambda: self.status().requests_running == 0))

    def test_deadline_reaches_the_server(self):
        before = self.status().prompt_tokens_total
        started = time.monotonic()
        call = self.inference.Generate(inference.GenerateRequest(prompt="forever"), timeout=1.0)
        next(call)
        self.fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: next(call))
        self.assertLess(time.monotonic() - started, 10.0)
        self.assertTrue(wait_until(lambda: self.status().requests_running == 0))
        self.assertEqual(self.status().prompt_tokens_total, before + 1)

    # ---- health ----

    def test_health_check(self):
        def check(service):
            return self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        self.assertEqual(check(""), health_pb2.HealthCheckResponse.SERVING)
        self.assertEqual(check("kvasir.v1.Inference"), health_pb2.HealthCheckResponse.SERVING)
        self.assertEqual(check("kvasir.v1.Batch"), health_pb2.HealthCheckResponse.NOT_SERVING)
        self.fails(grpc.StatusCode.NOT_FOUND, check, "kvasir.v1.Nope")

    def test_health_watch(self):
        watch = self.health.Watch(health_pb2.HealthCheckRequest(service="kvasir.v1.Inference"), timeout=20)
        unknown = self.health.Watch(health_pb2.HealthCheckRequest(service="kvasir.v1.Nope"), timeout=20)
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        self.assertEqual(next(unknown).status, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        self.server.process.send_signal(signal.SIGUSR1)
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        self.server.process.send_signal(signal.SIGUSR1)
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        self.assertTrue(unknown.is_active())
        watch.cancel()
        unknown.cancel()

    # ---- reflection ----

    def ask(self, module, stub, **question):
        request = module.ServerReflectionRequest(host="me", **question)
        answers = list(stub.ServerReflectionInfo(iter([request]), timeout=10))
        self.assertEqual(len(answers), 1)
        self.assertEqual(answers[0].valid_host, "me")
        self.assertEqual(answers[0].original_request, request)
        return answers[0]

    def load_file(self, module, stub, pool, loaded, **question):
        answer = self.ask(module, stub, **question)
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if file.name in loaded:
                continue
            loaded[file.name] = file
            for dependency in file.dependency:
                self.load_file(module, stub, pool, loaded, file_by_filename=dependency)
            pool.Add(file)

    def check_reflection(self, module, stub):
        listed = self.ask(module, stub, list_services="")
        self.assertEqual({s.name for s in listed.list_services_response.service}, SERVICES)
        pool, loaded = descriptor_pool.DescriptorPool(), {}
        for service in SERVICES:
            self.load_file(module, stub, pool, loaded, file_containing_symbol=service)
            self.assertTrue(pool.FindServiceByName(service).methods)
        for symbol in ("kvasir.v1.GenerateRequest", "kvasir.v1.Finished.Reason", "kvasir.v1.Finished.Reason.STOP",
                       "kvasir.v1.Inference.Generate", "kvasir.v1.SamplingParams.temperature",
                       "kvasir.v1.BatchJob.MetadataEntry.key", "kvasir.v1.WorkerLink",
                       "kvasir.v1.GenerateRequest.input"):
            answer = self.ask(module, stub, file_containing_symbol=symbol)
            self.assertEqual(len(answer.file_descriptor_response.file_descriptor_proto), 1, symbol)
        self.assertIn("temperature", pool.FindMessageTypeByName("kvasir.v1.SamplingParams").fields_by_name)
        # Comments are part of it.
        info = loaded["kvasir/v1/inference.proto"].source_code_info
        self.assertTrue(any("picks the likeliest token" in l.leading_comments for l in info.location))

        for question in ({"file_by_filename": "nope.proto"}, {"file_containing_symbol": "kvasir.v1.Nope"},
                         {"file_containing_symbol": "kvasir.v1"}, {"file_containing_symbol": ""},
                         {"all_extension_numbers_of_type": "kvasir.v1.Nope"},
                         {"file_containing_extension": {"containing_type": "kvasir.v1.Chat", "extension_number": 1}}):
            answer = self.ask(module, stub, **question)
            self.assertEqual(answer.error_response.error_code, grpc.StatusCode.NOT_FOUND.value[0], question)
        answer = self.ask(module, stub, all_extension_numbers_of_type="kvasir.v1.Chat")
        self.assertEqual(answer.all_extension_numbers_response.base_type_name, "kvasir.v1.Chat")
        self.assertEqual(self.ask(module, stub).error_response.error_code,
                         grpc.StatusCode.INVALID_ARGUMENT.value[0])

    def test_reflection_v1(self):
        self.check_reflection(reflection_v1, reflection_v1_grpc.ServerReflectionStub(self.channel))

    def test_reflection_v1alpha(self):
        self.check_reflection(reflection_alpha, reflection_alpha_grpc.ServerReflectionStub(self.channel))

    def test_reflection_answers_several_questions_on_one_stream(self):
        stub = reflection_v1_grpc.ServerReflectionStub(self.channel)
        names = ["kvasir/v1/inference.proto", "nope", "kvasir/v1/cluster.proto"]
        answers = stub.ServerReflectionInfo(
            iter([reflection_v1.ServerReflectionRequest(file_by_filename=name) for name in names]), timeout=10)
        self.assertEqual([a.WhichOneof("message_response") for a in answers],
                         ["file_descriptor_response", "error_response", "file_descriptor_response"])

    # ---- the end ----

    def test_terminate_lets_streams_know(self):
        server = Server(self.program)
        with server.channel() as channel:
            stub = inference_grpc.InferenceStub(channel)
            watch = health_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
            call = stub.Generate(inference.GenerateRequest(prompt="forever"))
            next(call)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
            error = self.fails(grpc.StatusCode.UNAVAILABLE, stub.Complete, inference.GenerateRequest(prompt="x"))
            self.assertIn("shutting down", error.details())
            self.assertTrue(call.is_active())
            call.cancel()  # now nothing is left to wait for
            self.fails(grpc.StatusCode.UNAVAILABLE, lambda: next(watch))
            self.assertEqual(server.process.wait(10), 0)
            server.process.stdout.close()


if __name__ == "__main__":
    program, proto = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as stubs:
        generate_stubs(proto, stubs)
        from grpc.health.v1 import health_pb2, health_pb2_grpc as health_grpc
        from grpc.reflection.v1 import reflection_pb2 as reflection_v1, reflection_pb2_grpc as reflection_v1_grpc
        from grpc.reflection.v1alpha import reflection_pb2 as reflection_alpha, \
            reflection_pb2_grpc as reflection_alpha_grpc
        from kvasir.v1 import batch_pb2 as batch, batch_pb2_grpc as batch_grpc
        from kvasir.v1 import cluster_pb2 as cluster, cluster_pb2_grpc as cluster_grpc
        from kvasir.v1 import inference_pb2 as inference, inference_pb2_grpc as inference_grpc
        GrpcioTest.program = program
        unittest.main(argv=sys.argv[:1], verbosity=2)
