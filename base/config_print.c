#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/config.h"

#define TOTAL_COLUMNS 100
#define MAX_LEFT      38 /* a longer flag puts its help on the next line */
#define NO_LIMIT      1e15

// ---- help ----

static bool is_on(const struct config_row *row)
{
    return row->default_text != NULL && strcmp(row->default_text, "true") == 0;
}

static const char *value_word(const struct config_row *row)
{
    switch (row->type) {
    case CONFIG_INT:
        return " N";
    case CONFIG_FLOAT:
        return " X";
    case CONFIG_STRING:
        return " TEXT";
    case CONFIG_CHOICE:
        return " ";
    default:
        return "";
    }
}

/* "  -tp, --tensor-parallel-size N"; all long names begin in the same column. */
static void left_side(const struct config_row *row, char *buf, size_t buf_bytes)
{
    char alias[16] = "";
    if (row->alias != NULL) {
        snprintf(alias, sizeof alias, "%.12s,", row->alias);
    }
    // A switch that is on is turned off: that is the form worth showing.
    const bool negated = row->type == CONFIG_BOOL && is_on(row);
    snprintf(buf, buf_bytes, "  %-4s %s%s%s%s", alias, negated ? "--no-" : "--", row->name,
             value_word(row), row->type == CONFIG_CHOICE ? row->choices : "");
}

/* "1 to 64", "at least 1" or "" */
static void range_text(const struct config_row *row, char *buf, size_t buf_bytes)
{
    buf[0] = '\0';
    const bool is_number = row->type == CONFIG_INT || row->type == CONFIG_FLOAT;
    if (!is_number || (row->min == 0 && row->max == 0)) {
        return;
    }
    if (row->max >= NO_LIMIT) {
        snprintf(buf, buf_bytes, "at least %.15g", row->min);
    } else {
        snprintf(buf, buf_bytes, "%.15g to %.15g", row->min, row->max);
    }
}

/* The help line, then what is allowed and what holds when nothing is said. */
static void right_side(const struct config_row *row, char *buf, size_t buf_bytes)
{
    char range[64];
    range_text(row, range, sizeof range);
    const bool has_default =
        row->type != CONFIG_BOOL && row->default_text != NULL && row->default_text[0] != '\0';
    const char *between = range[0] != '\0' && has_default ? "; " : "";
    const char *open = range[0] != '\0' || has_default ? " (" : "";
    const char *close = range[0] != '\0' || has_default ? ")" : "";
    snprintf(buf, buf_bytes, "%s%s%s%s%s%s%s", row->help, open, range, between,
             has_default ? "default " : "", has_default ? row->default_text : "", close);
}

/* Prints text from `column` on, broken at spaces. */
static void print_wrapped(FILE *out, const char *text, int column)
{
    const int width = TOTAL_COLUMNS - column;
    while ((int)strlen(text) > width) {
        int cut = width;
        while (cut > 0 && text[cut] != ' ') {
            cut--;
        }
        cut = cut > 0 ? cut : width;
        fprintf(out, "%.*s\n%*s", cut, text, column, "");
        text += cut;
        text += strspn(text, " ");
    }
    fprintf(out, "%s\n", text);
}

static int left_columns(const struct config_set *set)
{
    size_t widest = 16;
    for (size_t i = 0; i < set->n_rows; i++) {
        char left[CONFIG_MAX_ROWS * 2];
        left_side(&set->rows[i], left, sizeof left);
        const size_t size = strlen(left);
        widest = size > widest && size <= MAX_LEFT ? size : widest;
    }
    return (int)widest + 2;
}

static void print_line(FILE *out, const char *left, const char *right, int column)
{
    if ((int)strlen(left) + 2 > column) {
        fprintf(out, "%s\n%*s", left, column, "");
    } else {
        fprintf(out, "%-*s", column, left);
    }
    print_wrapped(out, right, column);
}

void config_print_help(const struct config_set *set, FILE *out)
{
    const int column = left_columns(set);
    for (size_t i = 0; i < set->n_rows; i++) {
        char left[256];
        char right[1024];
        left_side(&set->rows[i], left, sizeof left);
        right_side(&set->rows[i], right, sizeof right);
        print_line(out, left, right, column);
    }
    print_line(out, "       --config FILE", "read settings from FILE, one `name = value` a line",
               column);
    print_line(out, "  -h,  --help", "print this and leave", column);
    print_line(out, "       --version", "print the version and leave", column);
    fprintf(out, "\nA setting comes from its flag, else from the environment (--max-num-seqs is "
                 "KVASIR_MAX_NUM_SEQS),\nelse from the file, else it has its default.\n");
}

// ---- log ----

static const char *choice_text(const struct config_row *row, int index, size_t *size_out)
{
    const char *choice = row->choices;
    for (; index > 0; index--) {
        choice = strchr(choice, '|') + 1;
    }
    *size_out = strcspn(choice, "|");
    return choice;
}

/* Reads the field as the type its row says; offsets and types come from the same table. */
static status_t append_value(const struct config_set *set, const struct config_row *row,
                             struct bytes *line)
{
    const void *field = (const char *)set->target + row->offset;
    switch (row->type) {
    case CONFIG_INT:
        return bytes_printf(line, " %s=%lld", row->name, (long long)*(const int64_t *)field);
    case CONFIG_FLOAT:
        return bytes_printf(line, " %s=%.15g", row->name, *(const double *)field);
    case CONFIG_BOOL:
        return bytes_printf(line, " %s=%s", row->name, *(const bool *)field ? "true" : "false");
    case CONFIG_CHOICE: {
        size_t size;
        const char *choice = choice_text(row, *(const int *)field, &size);
        return bytes_printf(line, " %s=%.*s", row->name, (int)size, choice);
    }
    default: {
        char quoted[512];
        return bytes_printf(line, " %s=%s", row->name,
                            log_quote(*(const char *const *)field, quoted, sizeof quoted));
    }
    }
}

void config_log(const struct config_set *set, const log_t *log)
{
    struct bytes line;
    bytes_init(&line, 3500); // what a log line holds; a value that does not fit is left out
    for (size_t i = 0; i < set->n_rows; i++) {
        if (set->origin[i] != CONFIG_FROM_DEFAULT) {
            const status_t s = append_value(set, &set->rows[i], &line);
            (void)s;
        }
    }
    // Every pair begins with a space; log_write makes the first one itself.
    if (line.size > 0) {
        log_write(log, LOG_INFO, "settings", "%.*s", (int)line.size - 1,
                  (const char *)line.data + 1);
    } else {
        log_write(log, LOG_INFO, "settings", "all=default");
    }
    bytes_destroy(&line);
}
