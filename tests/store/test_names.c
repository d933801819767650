/* The sorted table of names. */
#include "store/names.h"
#include "support/golden.h"

#include <stdio.h>
#include <string.h>

static void finds_what_is_there_and_nothing_else(void **state)
{
    (void)state;
    enum { N = 501 };
    static char text[N][16];
    static nb_name names[N];
    for (int n = 0; n <= N; n += n < 10 ? 1 : 97) {
        for (int i = 0; i < n; i++) { /* 7919 is prime: some order other than the sorted one */
            snprintf(text[i], sizeof text[i], "w%d", i * 7919 % N);
            names[i] = (nb_name){.name = text[i], .value = i};
        }
        nb_names_sort(names, n);
        assert_null(nb_names_twice(names, n));
        for (int i = 0; i < n; i++) {
            const nb_name *found = nb_names_find(names, n, text[i]);
            assert_non_null(found);
            assert_int_equal(found->value, i);
        }
        assert_null(nb_names_find(names, n, "w"));
        assert_null(nb_names_find(names, n, ""));
        assert_null(nb_names_find(names, n, "x"));
        assert_null(nb_names_find(names, n, "w501"));
    }
}

static void equal_names_are_neighbours_in_the_order_of_their_values(void **state)
{
    (void)state;
    nb_name names[] = {{"b", 3}, {"a", 2}, {"b", 1}, {"c", 0}};
    nb_names_sort(names, 4);
    assert_int_equal(nb_names_find(names, 4, "b")->value, 1);
    const nb_name *twice = nb_names_twice(names, 4);
    assert_non_null(twice);
    assert_string_equal(twice->name, "b");
    assert_int_equal(twice->value, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_is_there_and_nothing_else),
        cmocka_unit_test(equal_names_are_neighbours_in_the_order_of_their_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
