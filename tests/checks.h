/* What the C tests share: counted checks, tensors and noise. */

#ifndef LMSD_TESTS_CHECKS_H
#define LMSD_TESTS_CHECKS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "lmsd.h"

static int passed, failed;

static inline void check(bool good, const char *what, int line) {
    if (good) {
        passed++;
        return;
    }
    failed++;
    fprintf(stderr, "%s:%d: failed: %s\n", __BASE_FILE__, line, what);
}
#define CHECK(condition) check((condition), #condition, __LINE__)

/* Of two dimensions, of the library's own kind. */
static inline lmsd_tensor tensor_of(void *data, int bits, const int64_t *shape) {
    lmsd_tensor t = {0};
    t.data = data;
    t.device.device_type = LMSD_DEVICE_CPU;
    t.ndim = 2;
    t.dtype = (lmsd_dtype){LMSD_DTYPE_FLOAT, (uint8_t)bits, 1};
    t.shape = shape;
    return t;
}

/* A standard normal number, by Box and Muller. */
static inline double normal_of(uint64_t *state) {
    double u[2];
    for (int i = 0; i < 2; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        u[i] = ((double)(*state >> 11) + 0.5) * 0x1p-53;
    }
    return sqrt(-2 * log(u[0])) * cos(6.283185307179586 * u[1]);
}

#endif
