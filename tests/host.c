/* What a process may do around the library: loading and unloading it, fork, small stacks, floating point and locale as it
 * likes, calls inside callbacks. Linux. The library is loaded by dlopen, as plugins load it.
 *
 *     host LIBRARY.so         1 if anything failed */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fenv.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checks.h"


/* ------------------------------------------------------------------ the library */

static struct {
    void *handle;
    const char *(*last_error)(void);
    lmsd_status (*solve)(const char *, lmsd_schedule **);
    lmsd_status (*from_json)(const char *, size_t, lmsd_schedule **);
    lmsd_status (*to_json)(const lmsd_schedule *, char **);
    lmsd_status (*node)(const lmsd_schedule *, size_t, lmsd_node *);
    lmsd_status (*check)(const lmsd_schedule *, const char *);
    size_t (*nfe)(const lmsd_schedule *);
    void (*schedule_free)(lmsd_schedule *);
    void (*string_free)(char *);
    lmsd_status (*sample)(const lmsd_schedule *, const lmsd_host *, const void *, lmsd_model, lmsd_observer, void *,
                          void *);
    lmsd_status (*sampler_new)(const lmsd_schedule *, const lmsd_host *, const void *, lmsd_sampler **);
    lmsd_status (*sampler_next)(const lmsd_sampler *, double *, void *);
    lmsd_status (*sampler_step)(lmsd_sampler *, const void *);
    lmsd_status (*sampler_result)(const lmsd_sampler *, void *);
    void (*sampler_free)(lmsd_sampler *);
    lmsd_status (*distill)(const char *, const lmsd_host *, const lmsd_problem *, lmsd_distilled **);
    lmsd_status (*distilled_schedule)(const lmsd_distilled *, size_t, lmsd_schedule **);
    void (*distilled_free)(lmsd_distilled *);
} lib;

static void *symbol(const char *name) {
    void *found = dlsym(lib.handle, name);
    if (found == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return found;
}
/* ISO C has no conversion from void * to a function. */
#define GET(member, name) (*(void **)(void *)&lib.member = symbol(name))

static void load(const char *path) {
    lib.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (lib.handle == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    GET(last_error, "lmsd_last_error");
    GET(solve, "lmsd_schedule_solve");
    GET(from_json, "lmsd_schedule_from_json");
    GET(to_json, "lmsd_schedule_to_json");
    GET(node, "lmsd_schedule_node");
    GET(check, "lmsd_schedule_check");
    GET(nfe, "lmsd_schedule_nfe");
    GET(schedule_free, "lmsd_schedule_free");
    GET(string_free, "lmsd_string_free");
    GET(sample, "lmsd_sample");
    GET(sampler_new, "lmsd_sampler_new");
    GET(sampler_next, "lmsd_sampler_next");
    GET(sampler_step, "lmsd_sampler_step");
    GET(sampler_result, "lmsd_sampler_result");
    GET(sampler_free, "lmsd_sampler_free");
    GET(distill, "lmsd_distill");
    GET(distilled_schedule, "lmsd_distilled_schedule");
    GET(distilled_free, "lmsd_distilled_free");
}

/* ------------------------------------------------------------------ what is computed */

#define BATCH 4
#define LENGTH 6
#define SIZE (BATCH * LENGTH)
#define LARGE (6 << 20) /* elements: enough for threads */
static const int64_t SHAPE[] = {BATCH, LENGTH}, LARGE_SHAPE[] = {BATCH, LARGE / BATCH};

/* The same in every rounding mode: rational, and computed in the default one. Tells the host's mode as it found it. */
static atomic_int mode_seen;
static int model(void *user, const lmsd_call *call, const void *in, void *out) {
    (void)user;
    fenv_t hosts;
    atomic_store(&mode_seen, fegetround());
    fegetenv(&hosts);
    fesetenv(FE_DFL_ENV);
    const double *from = ((const lmsd_tensor *)in)->data;
    double *to = ((lmsd_tensor *)out)->data, all = 0.09 + call->sigma * call->sigma;
    for (int i = 0; i < SIZE; i++) {
        double v = from[i] / all;
        to[i] = 0.09 / all * from[i] + (1 - 0.09 / all) * v / sqrt(1 + v * v);
    }
    fesetenv(&hosts);
    return 0;
}

static int model_large(void *user, const lmsd_call *call, const void *in, void *out) {
    (void)user, (void)call;
    const float *from = ((const lmsd_tensor *)in)->data;
    float *to = ((lmsd_tensor *)out)->data;
    for (int i = 0; i < LARGE; i += 4096) to[i] = from[i] * 0.25f;
    return 0;
}

static int begin(void *user, uint64_t batch, void *x_t) {
    (void)user;
    fenv_t hosts;
    fegetenv(&hosts);
    fesetenv(FE_DFL_ENV);
    uint64_t state = batch + 1;
    for (int i = 0; i < SIZE; i++) ((double *)((lmsd_tensor *)x_t)->data)[i] = 80 * normal_of(&state);
    fesetenv(&hosts);
    return 0;
}

/* A sum over the bits of values: the same if and only if all are, but for luck. */
static uint64_t mixed(uint64_t sum, const void *data, size_t bytes) {
    const unsigned char *at = data;
    for (size_t i = 0; i < bytes; i++) sum = (sum ^ at[i]) * 1099511628211u;
    return sum;
}

static bool sampled_large(uint64_t *sum) {
    float *x = calloc(LARGE, sizeof *x), *y = calloc(LARGE, sizeof *y);
    for (int i = 0; i < LARGE; i += 4096) x[i] = (float)i;
    lmsd_tensor tx = tensor_of(x, 32, LARGE_SHAPE), ty = tensor_of(y, 32, LARGE_SHAPE);
    lmsd_schedule *s = NULL;
    bool good = lib.solve("{\"nfe\": 3}", &s) == LMSD_STATUS_OK &&
                lib.sample(s, NULL, &tx, model_large, NULL, NULL, &ty) == LMSD_STATUS_OK;
    *sum = mixed(*sum, y, LARGE * sizeof *y);
    lib.schedule_free(s);
    free(x), free(y);
    return good;
}

#define FILE_TEXT                                                                                                      \
    "{\"format\": 1, \"process\": \"ve\", \"nfe\": 2, \"sigma_start\": 79.99999999999999, \"sigma_end\": 1e-310, "     \
    "\"nodes\": [{\"sigma\": 12.345678901234567, \"weights\": [1.1e-1]}, {\"sigma\": 0.1, \"weights\": [0.7, 0.3]}]}"

/* Something of everything that computes. */
static bool computed(bool with_fit, uint64_t *sum) {
    double x[SIZE], y[SIZE];
    lmsd_tensor tx = tensor_of(x, 64, SHAPE), ty = tensor_of(y, 64, SHAPE);
    begin(NULL, 7, &tx);
    lmsd_schedule *s = NULL, *read = NULL;
    char *text = NULL, *read_text = NULL;
    bool good = lib.solve("{\"nfe\": 7, \"solver\": \"unipc_bh2_3\", \"sigma_min\": 0.03}", &s) == LMSD_STATUS_OK &&
                lib.from_json(FILE_TEXT, strlen(FILE_TEXT), &read) == LMSD_STATUS_OK &&
                lib.sample(s, NULL, &tx, model, NULL, NULL, &ty) == LMSD_STATUS_OK &&
                lib.to_json(s, &text) == LMSD_STATUS_OK && lib.to_json(read, &read_text) == LMSD_STATUS_OK;
    if (!good) {
        fprintf(stderr, "    %s\n", lib.last_error());
        return false;
    }
    *sum = mixed(mixed(mixed(*sum, y, sizeof y), text, strlen(text)), read_text, strlen(read_text));
    lib.schedule_free(s), lib.schedule_free(read), lib.string_free(text), lib.string_free(read_text);
    if (!with_fit) return true;
    lmsd_problem p = {.struct_size = sizeof p, .like = &tx, .begin = begin, .model = model};
    lmsd_distilled *made = NULL;
    good = lib.distill("{\"nfe\": 3, \"trajectories\": 8, \"held_out\": 4, \"teacher_nfe\": 20}", NULL, &p, &made) ==
               LMSD_STATUS_OK &&
           lib.distilled_schedule(made, 0, &s) == LMSD_STATUS_OK;
    for (size_t n = 0; good && n < lib.nfe(s); n++) {
        lmsd_node node = {.struct_size = sizeof node};
        lib.node(s, n, &node);
        *sum = mixed(mixed(*sum, &node.sigma, 16), node.weights, node.weight_count * sizeof(double));
    }
    lib.schedule_free(s), lib.distilled_free(made);
    return good;
}

/* ------------------------------------------------------------------ tests */

/* As the host's process would do it: in a child, which must end well in time. */
static bool in_a_child(bool (*work)(void)) {
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(100);
        _exit(!work());
    }
    int how = -1;
    while (waitpid(child, &how, 0) < 0 && errno == EINTR) continue;
    return how == 0;
}

static uint64_t large_sum;
static bool large_again(void) {
    uint64_t sum = 0;
    return sampled_large(&sum) && sum == large_sum;
}

static atomic_bool stop;
static void *keep_sampling(void *good) {
    uint64_t sum = 0;
    while (!atomic_load(&stop)) *(bool *)good &= sampled_large(&sum);
    return NULL;
}

/* Before its threads are there, with them, and while another thread is at work. */
static void test_fork(void) {
    CHECK(in_a_child(large_again));
    CHECK(large_again());
    CHECK(in_a_child(large_again));
    bool good = true;
    pthread_t other;
    CHECK(pthread_create(&other, NULL, keep_sampling, &good) == 0);
    bool all = true;
    for (int i = 0; i < 10; i++) all &= in_a_child(large_again);
    CHECK(all);
    atomic_store(&stop, true);
    CHECK(pthread_join(other, NULL) == 0 && good);
}

static long resident(void) {
    long pages[2] = {0, 0};
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL || fscanf(file, "%ld %ld", &pages[0], &pages[1]) != 2) pages[1] = -1;
    if (file != NULL) fclose(file);
    return pages[1] * sysconf(_SC_PAGESIZE) >> 10;
}

static void *use_and_end(void *good) {
    uint64_t sum = 0;
    lmsd_schedule *none = NULL;
    *(bool *)good &= computed(false, &sum) && lib.solve("{\"nfe\": 0}", &none) == LMSD_STATUS_INVALID_ARGUMENT;
    return NULL;
}

/* Loaded, used by this thread, by one that ends after the unloading and by the library's own, unloaded. */
static void test_unload(const char *path, int cycles) {
    long before = 0;
    bool good = true;
    for (int i = 0; i < cycles; i++) {
        dlclose(lib.handle);
        load(path);
        pthread_t other;
        good &= pthread_create(&other, NULL, use_and_end, &good) == 0;
        uint64_t sum = 0;
        good &= i % 10 != 0 || sampled_large(&sum);
        good &= pthread_join(other, NULL) == 0;
        if (i == cycles / 2) before = resident();
    }
    CHECK(good);
    CHECK(resident() - before < 4096); /* KiB */
    printf("%d times loaded and unloaded: %ld KiB more after the second half\n", cycles, resident() - before);
}

struct small {
    bool fit, good;
    uint64_t sum;
};
/* The deepest JSON that is read. */
static bool refuses_depth(void) {
    static char options[400], host[400];
    char brackets[300];
    memset(brackets, '[', 120), memset(brackets + 120, ']', 120), brackets[240] = 0;
    snprintf(options, sizeof options, "{\"starts\": %s}", brackets);
    snprintf(host, sizeof host, "{\"model\": %s}", brackets);
    double x[SIZE];
    lmsd_tensor tx = tensor_of(x, 64, SHAPE);
    lmsd_problem p = {.struct_size = sizeof p, .like = &tx, .begin = begin, .model = model};
    lmsd_distilled *none = NULL;
    lmsd_schedule *s = NULL;
    bool good = lib.distill(options, NULL, &p, &none) == LMSD_STATUS_INVALID_ARGUMENT &&
                lib.solve("{}", &s) == LMSD_STATUS_OK && lib.check(s, host) == LMSD_STATUS_INVALID_ARGUMENT;
    lib.schedule_free(s);
    return good;
}

static void *on_a_small_stack(void *work) {
    struct small *own = work;
    own->good = computed(own->fit, &own->sum) && refuses_depth();
    return NULL;
}
static size_t stack_of_a_fit, stack_of_a_sample;
static bool on_small_stacks(void) {
    struct small fit = {true, false, 0}, sample = {false, false, 0};
    for (int i = 0; i < 2; i++) {
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        if (pthread_attr_setstacksize(&attributes, i == 0 ? stack_of_a_fit : stack_of_a_sample) != 0) return false;
        if (pthread_create(&thread, &attributes, on_a_small_stack, i == 0 ? &fit : &sample) != 0) return false;
        pthread_join(thread, NULL);
        pthread_attr_destroy(&attributes);
    }
    return fit.good && sample.good;
}

/* The stacks that the header says are enough. */
static void test_stacks(void) {
    stack_of_a_fit = 128 << 10, stack_of_a_sample = 64 << 10;
    CHECK(in_a_child(on_small_stacks));
}

#if defined(__x86_64__)
#define FLUSH 0x8040u /* FTZ and DAZ */
static unsigned control(void) { return __builtin_ia32_stmxcsr(); }
static void set_control(unsigned value) { __builtin_ia32_ldmxcsr(value); }
#else
#define FLUSH 0u
static unsigned control(void) { return 0; }
static void set_control(unsigned value) { (void)value; }
#endif

static bool computed_here(uint64_t wanted, int rounding, unsigned flags) {
    uint64_t sum = 0;
    fesetround(rounding);
    set_control(control() | flags);
    unsigned before = control();
    bool good = computed(true, &sum), kept = fegetround() == rounding && (control() & ~0x3fu) == (before & ~0x3fu);
    fesetenv(FE_DFL_ENV);
    return good && sum == wanted && kept && atomic_load(&mode_seen) == rounding;
}

/* Results are the same bits, callbacks and the host afterwards have what the host had set. */
static void test_floating_point(void) {
    uint64_t wanted = 0;
    CHECK(computed(true, &wanted));
    CHECK(computed_here(wanted, FE_TONEAREST, 0));
    CHECK(computed_here(wanted, FE_DOWNWARD, 0));
    CHECK(computed_here(wanted, FE_TOWARDZERO, FLUSH));
    CHECK(computed_here(wanted, FE_UPWARD, FLUSH));
}

static void test_locale(void) {
    uint64_t wanted = 0, sum = 0;
    CHECK(computed(false, &wanted));
    const char *name = setlocale(LC_ALL, "de_DE.UTF-8");
    if (name == NULL) name = setlocale(LC_ALL, "de_DE.utf8");
    if (name == NULL) printf("SKIPPED: no locale de_DE here\n");
    CHECK(computed(false, &sum) && sum == wanted);
    setlocale(LC_ALL, "C");
}

/* A callback that calls the library: what it makes, uses and frees is its own, and so is the error. */
static lmsd_schedule *to_free;
static int model_that_calls(void *user, const lmsd_call *call, const void *in, void *out) {
    uint64_t *sum = user;
    lmsd_schedule *none = NULL;
    bool good = computed(call->node == 1, sum) && lib.solve("{\"nfe\": 0}", &none) == LMSD_STATUS_INVALID_ARGUMENT;
    lib.schedule_free(to_free);
    to_free = NULL;
    return !good || model(NULL, call, in, out) != 0;
}

static void test_reentry(void) {
    double x[SIZE], y[SIZE], wanted[SIZE];
    lmsd_tensor tx = tensor_of(x, 64, SHAPE), ty = tensor_of(y, 64, SHAPE), tw = tensor_of(wanted, 64, SHAPE);
    begin(NULL, 3, &tx);
    lmsd_schedule *s = NULL;
    uint64_t sum = 0, once = 0;
    CHECK(lib.solve("{\"nfe\": 4}", &s) == LMSD_STATUS_OK);
    CHECK(lib.sample(s, NULL, &tx, model, NULL, NULL, &tw) == LMSD_STATUS_OK);
    CHECK(lib.solve("{\"nfe\": 5}", &to_free) == LMSD_STATUS_OK);
    CHECK(lib.sample(s, NULL, &tx, model_that_calls, NULL, &sum, &ty) == LMSD_STATUS_OK);
    CHECK(memcmp(y, wanted, sizeof y) == 0 && computed(false, &once));

    /* The step form has a copy of the schedule, which may go while a run uses it: in the middle of one here. */
    lmsd_sampler *run = NULL;
    double sigma = 0;
    CHECK(lib.sampler_new(s, NULL, &tx, &run) == LMSD_STATUS_OK);
    for (int n = 0; n < 4; n++) {
        CHECK(lib.sampler_next(run, &sigma, &ty) == LMSD_STATUS_OK);
        lmsd_call call = {.struct_size = sizeof call, .node = (size_t)n, .nfe = 4, .sigma = sigma};
        if (n == 1) lib.schedule_free(s);
        CHECK(model(NULL, &call, &ty, &ty) == 0);
        CHECK(lib.sampler_step(run, &ty) == LMSD_STATUS_OK);
    }
    CHECK(lib.sampler_result(run, &ty) == LMSD_STATUS_OK && memcmp(y, wanted, sizeof y) == 0);
    lib.sampler_free(run);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    alarm(600);
    setenv("RAYON_NUM_THREADS", "3", 0);
    load(argv[1]);
    if (argc > 3) { /* the least stacks, in KiB: 1 where they do not do */
        stack_of_a_fit = (size_t)atoi(argv[2]) << 10, stack_of_a_sample = (size_t)atoi(argv[3]) << 10;
        return !on_small_stacks();
    }
    /* What the large sample gives on one thread, before there are any. */
    setenv("RAYON_NUM_THREADS", "1", 1);
    int sums[2];
    if (pipe(sums) != 0) return 1;
    pid_t child = fork();
    if (child == 0) {
        bool good = sampled_large(&large_sum);
        _exit(!(good && write(sums[1], &large_sum, sizeof large_sum) == (ssize_t)sizeof large_sum));
    }
    CHECK(read(sums[0], &large_sum, sizeof large_sum) == (ssize_t)sizeof large_sum);
    waitpid(child, NULL, 0);
    setenv("RAYON_NUM_THREADS", "3", 1);

    test_fork();
    test_stacks();
    test_floating_point();
    test_locale();
    test_reentry();
    test_unload(argv[1], argc > 2 ? atoi(argv[2]) : 20);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
