/* What abi.c asks of the system, for POSIX and for Windows (mingw). Paths are UTF-8. */

#ifndef LMSD_TESTS_PLATFORM_H
#define LMSD_TESTS_PLATFORM_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32

#include <windows.h>
/* after it */
#include <psapi.h>

/* As Windows has it, with the prefix that allows more than 260 characters. */
static void wide_path(const char *path, wchar_t wide[1100]) {
    wchar_t relative[1000];
    MultiByteToWideChar(CP_UTF8, 0, path, -1, relative, 1000);
    wcscpy(wide, L"\\\\?\\");
    GetFullPathNameW(relative, 1000, wide + 4, NULL);
}

static bool make_folder(const char *path) {
    wchar_t wide[1100];
    wide_path(path, wide);
    return CreateDirectoryW(wide, NULL);
}

static bool remove_path(const char *path) {
    wchar_t wide[1100];
    wide_path(path, wide);
    return DeleteFileW(wide) || RemoveDirectoryW(wide);
}

/* The path ends in XXXXXX, which become what no other process has. */
static bool make_own_folder(char *path) {
    snprintf(path + strlen(path) - 6, 7, "%06lu", GetCurrentProcessId() % 1000000);
    return make_folder(path);
}

/* There are none among the files. */
static bool make_pipe(const char *path) {
    (void)path;
    return false;
}

/* Most memory that the process has had, in KiB. */
static long peak_memory(void) {
    PROCESS_MEMORY_COUNTERS counters = {.cb = sizeof counters};
    K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters);
    return (long)(counters.PeakWorkingSetSize >> 10);
}

#else

#include <sys/resource.h>
#include <sys/stat.h>

static bool make_folder(const char *path) { return mkdir(path, 0700) == 0; }

static bool make_own_folder(char *path) { return mkdtemp(path) != NULL; }

static bool remove_path(const char *path) { return remove(path) == 0; }

static bool make_pipe(const char *path) { return mkfifo(path, 0600) == 0; }

/* Most memory that the process has had, in KiB. */
static long peak_memory(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

#endif

#endif
