/*
 * config_file.c - the settings file
 *
 * Layout:    lines of `name = value`; blank lines and lines that begin with # are skipped. Spaces around
 *            both sides are dropped; a value in double quotes is taken as it stands between them.
 */
#include <string.h>

#include "base/config_parts.h"
#include "base/file.h"

#define MAX_FILE_BYTES ((size_t)1024 * 1024)

struct line {
    const char *path;
    int number;
    char *text;
};

/* Cuts spaces off both ends, in place. */
static char *trim(char *text)
{
    static const char spaces[] = " \t\r";
    text += strspn(text, spaces);
    size_t size = strlen(text);
    while (size > 0 && strchr(spaces, text[size - 1]) != NULL) {
        size--;
    }
    text[size] = '\0';
    return text;
}

static char *unquote(char *text)
{
    const size_t size = strlen(text);
    if (size < 2 || text[0] != '"' || text[size - 1] != '"') {
        return text;
    }
    text[size - 1] = '\0';
    return text + 1;
}

static status_t unknown_name(const struct config_set *set, const struct line *line,
                             const char *name)
{
    const char *meant = config_names_nearest(set, name, 3);
    return status_errorf(STATUS_INVALID_ARGUMENT, "unknown setting '%.64s' (%s:%d)%s%s%s", name,
                         line->path, line->number, meant != NULL ? STATUS_FIX "did you mean " : "",
                         meant != NULL ? meant : "", meant != NULL ? "?" : "");
}

static status_t set_line(struct config_set *set, const struct line *line)
{
    char *name = trim(line->text);
    if (name[0] == '\0' || name[0] == '#') {
        return status_ok();
    }
    char *equals = strchr(name, '=');
    if (equals == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "'%.64s' is not name = value (%s:%d)", name,
                             line->path, line->number);
    }
    *equals = '\0';
    name = trim(name);
    const size_t row = config_names_find(set, name, strlen(name));
    if (row == set->n_rows) {
        return unknown_name(set, line, name);
    }
    if (set->origin[row] == CONFIG_FROM_FILE) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s is set twice (%s:%d)", name, line->path,
                             line->number);
    }
    char label[CONFIG_LABEL_BYTES];
    snprintf(label, sizeof label, "%s (%.180s:%d)", set->rows[row].name, line->path, line->number);
    return config_value_set(set, row, unquote(trim(equals + 1)), CONFIG_FROM_FILE, label);
}

static status_t set_lines(struct config_set *set, const char *path, char *text)
{
    struct line line = {.path = path, .number = 1};
    while (text != NULL) {
        line.text = strsep(&text, "\n");
        TRY(set_line(set, &line));
        line.number++;
    }
    return status_ok();
}

status_t config_file_load(struct config_set *set, const char *path)
{
    struct bytes content;
    bytes_init(&content, MAX_FILE_BYTES + 2);
    status_t s;
    TRY_GOTO(s, file_read(path, MAX_FILE_BYTES, &content), done);
    if (memchr(content.data, '\0', content.size) != NULL) {
        s = status_errorf(STATUS_INVALID_ARGUMENT, "%s: holds a NUL byte, is not text", path);
        goto done;
    }
    TRY_GOTO(s, bytes_append(&content, "", 1), done);
    s = set_lines(set, path, (char *)content.data);
done:
    bytes_destroy(&content);
    return s;
}
