/* No memory: every allocation of every call fails once alone, and once with all that come after it. Each try is in a
 * process of its own, a child of fork, so one that ends by a signal is counted and named. glibc only, whose allocator
 * stands behind the one below.
 *
 *     memory                  all calls; 1 where a call ended the process, or broke a promise of the header
 *     memory NAME K [ALL]     one call in this process, for a debugger: its K-th allocation fails, or all from there on */

#define _GNU_SOURCE

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"

/* ------------------------------------------------------------------ the allocator */

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_bool armed;
static atomic_long seen, live, largest;
static long fail_at = -1;
static bool fail_all;
static atomic_long *refused; /* size of the smallest allocation that failed; shared with the children */

/* Whether this allocation may be had. */
static bool granted(size_t size) {
    if (!atomic_load(&armed)) return true;
    long number = atomic_fetch_add(&seen, 1);
    if (number == fail_at || (fail_all && fail_at >= 0 && number > fail_at)) {
        long least = atomic_load(refused);
        while ((long)size < least && !atomic_compare_exchange_weak(refused, &least, (long)size)) continue;
        errno = ENOMEM;
        return false;
    }
    if ((long)size > atomic_load(&largest)) atomic_store(&largest, (long)size);
    return true;
}

static void *counted(void *block) {
    if (block != NULL) atomic_fetch_add(&live, 1);
    return block;
}

void *malloc(size_t size) { return granted(size) ? counted(__libc_malloc(size)) : NULL; }
void *calloc(size_t count, size_t size) {
    return granted(count * size) ? counted(__libc_calloc(count, size)) : NULL;
}
void *realloc(void *block, size_t size) {
    if (block == NULL) return malloc(size);
    return granted(size) ? __libc_realloc(block, size) : NULL;
}
void *memalign(size_t alignment, size_t size) {
    return granted(size) ? counted(__libc_memalign(alignment, size)) : NULL;
}
void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = memalign(alignment, size);
    return *out == NULL ? ENOMEM : 0;
}
void free(void *block) {
    if (block != NULL) atomic_fetch_sub(&live, 1);
    __libc_free(block);
}

/* ------------------------------------------------------------------ what the calls work on */

#define BATCH 4
#define LENGTH 6
static const int64_t SHAPE[] = {BATCH, LENGTH}, LARGE[] = {2, 1 << 19};

static char path[600], saved[700], *text, text_large[1 << 20];
static lmsd_schedule *schedule, *schedule_short, *schedule_large;
static lmsd_sampler *sampler;
static lmsd_distilled *distilled;
static double x[BATCH * LENGTH], y[BATCH * LENGTH], z[BATCH * LENGTH];
static float *large[3];
static lmsd_tensor tx, ty, tz, tl[3];

static int model(void *user, const lmsd_call *call, const void *in, void *out) {
    (void)user;
    const double *from = ((const lmsd_tensor *)in)->data;
    double *to = ((lmsd_tensor *)out)->data, s = call->sigma * call->sigma;
    for (int i = 0; i < BATCH * LENGTH; i++) {
        double all = 0.09 + s;
        to[i] = 0.09 / all * from[i] + (1 - 0.09 / all) * tanh(from[i] / all);
    }
    return 0;
}

static int model_large(void *user, const lmsd_call *call, const void *in, void *out) {
    (void)user, (void)call, (void)in;
    memset(((lmsd_tensor *)out)->data, 0, sizeof(float) << 20);
    return 0;
}

static int begin(void *user, uint64_t batch, void *x_t) {
    (void)user;
    uint64_t state = batch + 1;
    for (int i = 0; i < BATCH * LENGTH; i++) ((double *)((lmsd_tensor *)x_t)->data)[i] = 80 * normal_of(&state);
    return 0;
}

static const lmsd_problem *problem(void) {
    static lmsd_problem p;
    p = (lmsd_problem){.struct_size = sizeof p, .like = &tx, .begin = begin, .model = model};
    return &p;
}

static int host_alloc(void *user, const void *like, void **out) {
    (void)user, (void)like;
    *out = __libc_calloc(BATCH * LENGTH, sizeof(double));
    return *out == NULL;
}
static void host_release(void *user, void *t) { (void)user, __libc_free(t); }
static int host_lincomb(void *user, void *out, size_t count, const double *factors, const void *const *terms) {
    (void)user;
    for (int i = 0; i < BATCH * LENGTH; i++) {
        double sum = 0;
        for (size_t t = 0; t < count; t++) sum += factors[t] * ((const double *)terms[t])[i];
        ((double *)out)[i] = sum;
    }
    return 0;
}
static int host_gram(void *user, size_t count, const void *const *columns, double *out) {
    (void)user, (void)columns;
    for (size_t i = 0; i < BATCH * count * count; i++) out[i] = 1;
    return 0;
}
static size_t host_batch(void *user, const void *t) { return (void)user, (void)t, (size_t)BATCH; }
static int host_model(void *user, const lmsd_call *call, const void *in, void *out) {
    (void)user, (void)call, (void)in;
    memset(out, 0, sizeof x);
    return 0;
}
static const lmsd_host *host(void) {
    static lmsd_host h;
    h = (lmsd_host){.struct_size = sizeof h, .alloc = host_alloc, .release = host_release,
                    .lincomb = host_lincomb, .gram = host_gram, .batch = host_batch};
    return &h;
}

/* ------------------------------------------------------------------ the calls */

static int broken; /* promises of the header that a call of this process broke */

static void untouched(bool is) {
    if (!is) broken |= 1;
}

/* A handle or a text that is written on success only. */
#define MAKES(type, free_it, call)                                                                                     \
    type *const before = (type *)(void *)&broken, *out = before;                                                       \
    lmsd_status status = call;                                                                                         \
    if (status == LMSD_STATUS_OK) free_it(out);                                                                        \
    else untouched(out == before);                                                                                     \
    return status

#define GRID "{\"nfe\": 6, \"sigma_min\": 0.01}"
static lmsd_status do_solve(void) { MAKES(lmsd_schedule, lmsd_schedule_free, lmsd_schedule_solve(GRID, &out)); }
static lmsd_status do_solve_1000(void) {
    MAKES(lmsd_schedule, lmsd_schedule_free,
          lmsd_schedule_solve("{\"nfe\": 1000, \"solver\": \"unipc_bh2_3\"}", &out));
}
static lmsd_status do_from_json(void) {
    MAKES(lmsd_schedule, lmsd_schedule_free, lmsd_schedule_from_json(text, strlen(text), &out));
}
static lmsd_status do_load(void) { MAKES(lmsd_schedule, lmsd_schedule_free, lmsd_schedule_load(path, &out)); }
static lmsd_status do_to_json(void) { MAKES(char, lmsd_string_free, lmsd_schedule_to_json(schedule, &out)); }
static lmsd_status do_start_at(void) {
    MAKES(lmsd_schedule, lmsd_schedule_free, lmsd_schedule_start_at(schedule, 5, &out));
}
static lmsd_status do_save(void) {
    lmsd_status status = lmsd_schedule_save(schedule, saved);
    if (status == LMSD_STATUS_OK) unlink(saved);
    else untouched(access(saved, F_OK) != 0);
    return status;
}
static lmsd_status do_from_json_large(void) {
    MAKES(lmsd_schedule, lmsd_schedule_free, lmsd_schedule_from_json(text_large, strlen(text_large), &out));
}
static lmsd_status do_to_json_large(void) {
    MAKES(char, lmsd_string_free, lmsd_schedule_to_json(schedule_large, &out));
}
static lmsd_status do_check(void) { return lmsd_schedule_check(schedule, "{\"process\": \"ve\", \"sigma_max\": 80}"); }
static lmsd_status do_solvers(void) { MAKES(char, lmsd_string_free, lmsd_solvers(&out)); }
static lmsd_status do_options(void) { MAKES(char, lmsd_string_free, lmsd_options(&out)); }
static lmsd_status do_rivals(void) {
    MAKES(char, lmsd_string_free, lmsd_rivals("{\"nfe\": 3, \"field\": \"published\"}", &out));
}
static lmsd_status do_sample(void) {
    for (int i = 0; i < BATCH * LENGTH; i++) z[i] = 7;
    lmsd_status status = lmsd_sample(schedule, NULL, &tx, model, NULL, NULL, &tz);
    if (status != LMSD_STATUS_OK) untouched(z[0] == 7 && z[BATCH * LENGTH - 1] == 7);
    return status;
}
static lmsd_status do_sample_large(void) {
    return lmsd_sample(schedule_short, NULL, &tl[0], model_large, NULL, NULL, &tl[1]);
}
static lmsd_status do_sample_host(void) {
    return lmsd_sample(schedule, host(), x, host_model, NULL, NULL, z);
}
static lmsd_status do_steps(void) {
    lmsd_sampler *const before = (lmsd_sampler *)(void *)&broken, *run = before;
    lmsd_status status = lmsd_sampler_new(schedule, NULL, &tx, &run);
    if (status != LMSD_STATUS_OK) {
        untouched(run == before);
        return status;
    }
    double sigma = -1;
    while (status == LMSD_STATUS_OK && lmsd_sampler_index(run) < lmsd_schedule_nfe(schedule)) {
        size_t at = lmsd_sampler_index(run);
        sigma = -1;
        status = lmsd_sampler_next(run, &sigma, &ty);
        if (status != LMSD_STATUS_OK) {
            untouched(sigma == -1);
            break;
        }
        lmsd_call call = {.struct_size = sizeof call, .sigma = sigma};
        model(NULL, &call, &ty, &tz);
        status = lmsd_sampler_step(run, &tz);
        if (status != LMSD_STATUS_OK) untouched(lmsd_sampler_index(run) == at);
    }
    if (status == LMSD_STATUS_OK) status = lmsd_sampler_result(run, &tz);
    lmsd_sampler_free(run);
    return status;
}
static lmsd_status do_sampler_copy(void) {
    MAKES(lmsd_sampler, lmsd_sampler_free, lmsd_sampler_copy(sampler, &out));
}
static lmsd_status do_set_state(void) { return lmsd_sampler_set_state(sampler, &tx); }
static lmsd_status do_lincomb(void) {
    const void *terms[] = {&tx, &ty};
    return lmsd_lincomb(NULL, 2, (double[]){1, 2}, terms, &tz);
}
static lmsd_status do_gram(void) {
    const void *columns[] = {&tx, &ty};
    double out[BATCH * 4] = {-1};
    lmsd_status status = lmsd_gram(NULL, 2, columns, BATCH * 4, out);
    if (status != LMSD_STATUS_OK) untouched(out[0] == -1);
    return status;
}
static lmsd_status do_gram_large(void) {
    const void *columns[] = {&tl[0], &tl[1]};
    double out[8] = {-1};
    lmsd_status status = lmsd_gram(NULL, 2, columns, 8, out);
    if (status != LMSD_STATUS_OK) untouched(out[0] == -1);
    return status;
}
#define SMALL "{\"nfe\": 2, \"trajectories\": 8, \"held_out\": 4, \"max_calls\": 400}"
static lmsd_status do_distill(void) {
    MAKES(lmsd_distilled, lmsd_distilled_free, lmsd_distill(SMALL, NULL, problem(), &out));
}
static lmsd_status do_compare(void) {
    const lmsd_schedule *all[] = {schedule};
    double distance = -1;
    lmsd_status status = lmsd_compare("{\"held_out\": 4, \"teacher_nfe\": 20}", NULL, problem(), 1, all, &distance);
    if (status != LMSD_STATUS_OK) untouched(distance == -1);
    return status;
}
static lmsd_status do_report(void) { MAKES(char, lmsd_string_free, lmsd_distilled_report(distilled, &out)); }
static lmsd_status do_distilled_schedule(void) {
    MAKES(lmsd_schedule, lmsd_schedule_free, lmsd_distilled_schedule(distilled, 0, &out));
}

/* `stride`: of a call with very many allocations the first are tried, and then every so many. */
static const struct {
    const char *name;
    lmsd_status (*call)(void);
    long stride;
} CALLS[] = {
    {"solve", do_solve, 1},
    {"solve_1000", do_solve_1000, 9973},
    {"from_json", do_from_json, 1},
    {"from_json_large", do_from_json_large, 997},
    {"to_json_large", do_to_json_large, 997},
    {"load", do_load, 1},
    {"to_json", do_to_json, 1},
    {"start_at", do_start_at, 1},
    {"save", do_save, 1},
    {"check", do_check, 1},
    {"solvers", do_solvers, 4999},
    {"options", do_options, 97},
    {"rivals", do_rivals, 4999},
    {"sample", do_sample, 1},
    {"sample_large", do_sample_large, 1},
    {"sample_host", do_sample_host, 1},
    {"steps", do_steps, 1},
    {"sampler_copy", do_sampler_copy, 1},
    {"set_state", do_set_state, 1},
    {"lincomb", do_lincomb, 1},
    {"gram", do_gram, 1},
    {"gram_large", do_gram_large, 1},
    {"distill", do_distill, 49999},
    {"compare", do_compare, 29},
    {"report", do_report, 1},
    {"distilled_schedule", do_distilled_schedule, 1},
};
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ------------------------------------------------------------------ the walk */

static lmsd_status armed_call(size_t which, long at, bool all) {
    fail_at = at;
    fail_all = all;
    atomic_store(&seen, 0);
    atomic_store(&armed, true);
    lmsd_status status = CALLS[which].call();
    atomic_store(&armed, false);
    return status;
}

/* Rust and the C library end the process where they get none for a thread that is being made, so small a piece. */
#define FOR_A_THREAD 64

/* How a call fares whose allocation `at` fails. */
enum { FINE = 0, REFUSED, NO_THREAD, TOUCHED, LEAKED, OTHER_STATUS, NEXT_FAILS, DIED, KINDS };
static const char *const KIND[] = {"fine", "out of memory", "ended the process for want of a thread", "wrote an output", "leaked", "another status",
                                   "the next call failed", "ended the process"};

static int try_it(size_t which, long at, bool all, bool warm) {
    if (warm) CALLS[which].call(); /* what is made once and kept is no leak */
    long before = atomic_load(&live);
    lmsd_status status = armed_call(which, at, all);
    if (status != LMSD_STATUS_OK && status != LMSD_STATUS_OUT_OF_MEMORY) {
        fprintf(stderr, "    status %d: %s\n", (int)status, lmsd_last_error());
        return OTHER_STATUS;
    }
    if (broken) return TOUCHED;
    if (warm && atomic_load(&live) > before) return LEAKED;
    if (CALLS[which].call() != LMSD_STATUS_OK) return NEXT_FAILS;
    return status == LMSD_STATUS_OK ? FINE : REFUSED;
}

/* In a child, which has none of the threads of its parent. */
static bool makes_threads(size_t which) { return strstr(CALLS[which].name, "large") != NULL; }

static int in_a_child(size_t which, long at, bool all, bool warm) {
    fflush(NULL);
    atomic_store(refused, LONG_MAX);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        if (getenv("LMSD_TEST_LOUD") == NULL && freopen("/dev/null", "w", stderr) == NULL) _exit(DIED);
        _exit(try_it(which, at, all, warm));
    }
    int how = 0;
    while (waitpid(child, &how, 0) < 0 && errno == EINTR) continue;
    if (WIFEXITED(how) && WEXITSTATUS(how) < KINDS) return WEXITSTATUS(how);
    return makes_threads(which) && !warm && atomic_load(refused) <= FOR_A_THREAD ? NO_THREAD : DIED;
}

static bool walk(size_t which, bool warm) {
    int length[2];
    if (pipe(length) != 0) return false;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) { /* in a child: a call may leave something behind for the next one */
        if (warm) CALLS[which].call();
        atomic_store(&largest, 0);
        armed_call(which, -1, false);
        long found[2] = {atomic_load(&seen), atomic_load(&largest)};
        _exit(write(length[1], found, sizeof found) != (ssize_t)sizeof found);
    }
    long found[2] = {0, 0}, counts[2][KINDS] = {{0}};
    bool whole = read(length[0], found, sizeof found) == (ssize_t)sizeof found;
    waitpid(child, NULL, 0);
    close(length[0]), close(length[1]);
    bool good = whole;
    long stride = CALLS[which].stride, first = stride > 1000 ? 4 : 15;
    for (int all = 0; all < 2; all++) {
        for (long at = 0; at < found[0]; at += at < first ? 1 : stride) {
            int how = in_a_child(which, at, all, warm);
            counts[all][how]++;
            if (how > NO_THREAD && good) {
                good = false;
                fprintf(stderr, "%s, allocation %ld%s: %s\n", CALLS[which].name, at, all ? " and all later" : "",
                        KIND[how]);
            }
        }
    }
    printf("%-18s %-5s %7ld allocations, largest %9ld;", CALLS[which].name, warm ? "" : "first", found[0],
           found[1]);
    for (int all = 0; all < 2; all++) {
        printf(all ? "; and all later:" : " one fails:");
        for (int kind = 0; kind < KINDS; kind++) {
            if (counts[all][kind] > 0) printf(" %ld %s,", counts[all][kind], KIND[kind]);
        }
    }
    printf("\n");
    return good;
}

/* Sizes of which the host alone decides: refused where there is no memory, without a look at what is behind them. */
static bool huge(void) {
    static double many[200000];
    static const void *columns[1000];
    static const int64_t shape[] = {200000, 1};
    lmsd_tensor t = tensor_of(many, 64, shape);
    for (int i = 0; i < 1000; i++) columns[i] = &t;
    double out[1];
    const struct rlimit limit = {(rlim_t)1 << 36, RLIM_INFINITY};
    pid_t child = fork();
    if (child == 0) {
        if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(1);
        lmsd_status status = lmsd_gram(NULL, 1000, columns, (size_t)200000 * 1000 * 1000, out);
        _exit(!(status == LMSD_STATUS_OUT_OF_MEMORY && strstr(lmsd_last_error(), "200000000000") != NULL));
    }
    int how = -1;
    while (waitpid(child, &how, 0) < 0 && errno == EINTR) continue;
    printf("%-24s %s\n", "a Gram matrix of 1.6 TB", how == 0 ? "out of memory" : "NOT REFUSED");
    return how == 0;
}

/* A schedule of 600 nodes, each with all the weights that it may have. */
static bool prepare_large(void) {
    char *at = text_large;
    at += sprintf(at, "{\"format\": 1, \"process\": \"ve\", \"nfe\": 600, \"sigma_start\": 600, \"sigma_end\": 0, "
                      "\"nodes\": [");
    for (int n = 0; n < 600; n++) {
        at += sprintf(at, "%s{\"sigma\": %d, \"weights\": [1", n == 0 ? "" : ", ", 600 - n);
        for (int j = 0; j < n; j++) at += sprintf(at, ",0");
        at += sprintf(at, "]}");
    }
    sprintf(at, "]}");
    return lmsd_schedule_from_json(text_large, strlen(text_large), &schedule_large) == LMSD_STATUS_OK;
}

static bool prepare(void) {
    uint64_t state = 3;
    for (int i = 0; i < BATCH * LENGTH; i++) x[i] = 80 * normal_of(&state);
    tx = tensor_of(x, 64, SHAPE), ty = tensor_of(y, 64, SHAPE), tz = tensor_of(z, 64, SHAPE);
    for (int i = 0; i < 3; i++) {
        large[i] = calloc(1 << 20, sizeof(float));
        tl[i] = tensor_of(large[i], 32, LARGE);
    }
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/lmsd-memory-%ld.json", folder != NULL ? folder : "/tmp", (long)getpid());
    snprintf(saved, sizeof saved, "%s.saved", path);
    return prepare_large() && lmsd_schedule_solve("{\"nfe\": 2}", &schedule_short) == 0 &&
           lmsd_schedule_solve(GRID, &schedule) == 0 && lmsd_schedule_save(schedule, path) == 0 &&
           lmsd_schedule_to_json(schedule, &text) == 0 && lmsd_sampler_new(schedule, NULL, &tx, &sampler) == 0 &&
           lmsd_distill(SMALL, NULL, problem(), &distilled) == 0;
}

int main(int argc, char **argv) {
    bool good = true;
    refused = mmap(NULL, sizeof *refused, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (refused == MAP_FAILED) return 1;
    setenv("RUST_BACKTRACE", "0", 1); /* it would ask for memory */
    setenv("RAYON_NUM_THREADS", "3", 1);
    /* The first call of a process, which has nothing yet. */
    good &= argc > 1 || walk(0, false);
    if (!prepare()) {
        fprintf(stderr, "the calls do not work at all: %s\n", lmsd_last_error());
        return 1;
    }
    good &= argc > 1 || huge();
    for (size_t which = 0; which < COUNT(CALLS); which++) {
        if (argc == 1) {
            good &= walk(which, true);
            if (makes_threads(which)) good &= walk(which, false);
        } else if (strcmp(argv[1], CALLS[which].name) == 0) {
            if (argc == 2) {
                good &= walk(which, false) && walk(which, true);
                continue;
            }
            int how = try_it(which, atol(argv[2]), argc > 3, false);
            printf("%s\n", KIND[how]);
            good &= how <= REFUSED;
        }
    }
    unlink(path);
    printf(good ? "no allocation that fails ends the process\n" : "FAILED\n");
    return good ? 0 : 1;
}
