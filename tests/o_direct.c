/* Preloaded into fsx, which has no O_DIRECT of its own: adds the flag to every open for reading and
 * writing of the file named by O_DIRECT_FILE. Touches nothing else. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static int open_as(const char *call, const char *path, int flags, mode_t mode)
{
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, call);
    const char *file = getenv("O_DIRECT_FILE");
    if (file && strcmp(path, file) == 0)
        flags |= O_DIRECT;
    return real(path, flags, mode);
}

#define OPEN(name)                                   \
    int name(const char *path, int flags, ...)       \
    {                                                \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode_t mode = va_arg(rest, mode_t);          \
        va_end(rest);                                \
        return open_as(#name, path, flags, mode);    \
    }

OPEN(open)
#undef open64
OPEN(open64)
