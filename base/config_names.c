#include "base/config_parts.h"

#include <ctype.h>
#include <string.h>

#define MAX_NAME_BYTES 64

static char folded(char c)
{
    if (c == '_') {
        return '-';
    }
    return c;
}

size_t config_names_find(const struct config_set *set, const char *text, size_t size)
{
    for (size_t i = 0; i < set->n_rows; i++) {
        const char *name = set->rows[i].name;
        size_t at = 0;
        while (at < size && name[at] != '\0' && name[at] == folded(text[at])) {
            at++;
        }
        if (at == size && name[at] == '\0') {
            return i;
        }
    }
    return set->n_rows;
}

static size_t min3(size_t a, size_t b, size_t c)
{
    const size_t ab = a < b ? a : b;
    return ab < c ? ab : c;
}

/* The distance of Damerau 1964, optimal alignment form; three rows of its table are enough. */
size_t config_names_distance(const char *a, const char *b)
{
    const size_t n = strlen(a);
    const size_t m = strlen(b);
    if (n > MAX_NAME_BYTES || m > MAX_NAME_BYTES) {
        return n + m;
    }
    size_t table[3][MAX_NAME_BYTES + 1];
    for (size_t j = 0; j <= m; j++) {
        table[0][j] = j;
    }
    for (size_t i = 1; i <= n; i++) {
        const size_t *before = table[(i + 1) % 3]; // row i - 2
        const size_t *above = table[(i - 1) % 3];
        size_t *row = table[i % 3];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            const size_t change = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            row[j] = min3(above[j] + 1, row[j - 1] + 1, change);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < row[j]) {
                row[j] = before[j - 2] + 1;
            }
        }
    }
    return table[n % 3][m];
}

const char *config_names_nearest(const struct config_set *set, const char *text, size_t max_slips)
{
    char typed[MAX_NAME_BYTES + 1] = "";
    size_t size = 0;
    for (; text[size] != '\0' && size < MAX_NAME_BYTES; size++) {
        typed[size] = folded(text[size]);
    }
    typed[size] = '\0';

    const char *best = NULL;
    size_t best_slips = max_slips + 1;
    for (size_t i = 0; i < set->n_rows; i++) {
        const char *name = set->rows[i].name;
        const size_t slips = config_names_distance(typed, name);
        if (slips < best_slips) {
            best = name;
            best_slips = slips;
        }
    }
    return best;
}

void config_names_to_env(const char *name, char buf[CONFIG_LABEL_BYTES])
{
    static const char prefix[] = "KVASIR_";
    memcpy(buf, prefix, sizeof prefix);
    size_t at = sizeof prefix - 1;
    for (; *name != '\0' && at + 1 < CONFIG_LABEL_BYTES; name++) {
        const int letter = isalnum((unsigned char)*name) ? toupper((unsigned char)*name) : '_';
        buf[at++] = (char)letter;
    }
    buf[at] = '\0';
}
