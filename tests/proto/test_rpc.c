/* Servers and clients in one process: what each kind of call does when nothing goes wrong, and how it ends. */
#include "tests/proto/loopback.h"

#include <string.h>

#include "base/clock.h"

static void test_rpc_unary_echoes(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct bytes response;
    bytes_init(&response, 1u << 20);
    assert_status_ok(
        loop_unary(rpc_server_address(loop.server), "/test.Loop/Echo", "hello", &response));
    assert_int_equal(response.size, 5);
    assert_memory_equal(response.data, "hello", 5);
    bytes_clear(&response);
    assert_status_ok(loop_unary(rpc_server_address(loop.server), "/test.Loop/Echo", "", &response));
    assert_int_equal(response.size, 0);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_OK], 2);
    bytes_destroy(&response);
    loop_server_stop(&loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rpc_unary_echoes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
