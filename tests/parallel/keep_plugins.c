/*
 * keep_plugins.c - what leak detection needs in sanitizer builds of programs that use MPI
 *
 * What:      makes dlclose do nothing: MPI_Finalize unloads MPI's plugins, and what they still hold would be
 *            reported as leaked by an "<unknown module>", which no suppression can name. Loaded plugins
 *            are named in tests/support/lsan.supp. One allocation is made through asprintf, behind which
 *            the stack cannot be followed; this project does not use asprintf.
 */

int dlclose(void *handle);
const char *
__lsan_default_suppressions(void); // NOLINT(bugprone-reserved-identifier): the sanitizer's name

int dlclose(void *handle)
{
    (void)handle;
    return 0;
}

const char *__lsan_default_suppressions(void) // NOLINT(bugprone-reserved-identifier)
{
    return "leak:__vasprintf_internal\n";
}
