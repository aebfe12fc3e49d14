/* What schedules, samples, combinations and inner products come out as, in all their digits: the same on every system,
   to rounding. */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lmsd.h"

/* The exact prediction of x0 where x0 is 1, with a standard deviation of 0.5. */
static int model(void *user_data, const lmsd_call *call, const void *x, void *denoised) {
    const double *in = ((const lmsd_tensor *)x)->data;
    double *out = ((lmsd_tensor *)denoised)->data, variance = call->sigma * call->sigma;
    (void)user_data;
    for (int i = 0; i < 4; i++) out[i] = (0.25 * in[i] + variance) / (0.25 + variance);
    return 0;
}

/* 2 a - a / 2 for every a of 16 bits, which has one result whatever the processor rounds in between: a sum over all bits. */
static int halves(uint8_t code) {
    static uint16_t a[65536], b[65536];
    const int64_t shape[] = {65536};
    lmsd_tensor from = {a, {LMSD_DEVICE_CPU, 0}, 1, {code, 16, 1}, shape, NULL, 0}, to = from;
    const void *terms[] = {&from, &from};
    const double factors[] = {2, -0.5};
    uint64_t sum = 0;
    to.data = b;
    for (int i = 0; i < 65536; i++) a[i] = (uint16_t)i;
    if (lmsd_lincomb(NULL, 2, factors, terms, &to) != LMSD_STATUS_OK) return 1;
    for (int i = 0; i < 65536; i++) {
        const uint16_t largest = code == LMSD_DTYPE_BFLOAT ? 0x7f80 : 0x7c00; /* what is above is not a number */
        sum = sum * 31 + ((b[i] & 0x7fff) > largest ? 1 : b[i]);
    }
    printf("16 bits, code %d: %.0f %.0f\n", code, (double)(sum >> 32), (double)(sum & 0xffffffff));
    return 0;
}

/* Inner products of 5 columns of whole numbers, which are exact, of a length that no block divides. */
static int products(uint8_t code, uint8_t bits) {
    enum { N = 1003 };
    static double doubles[5][N];
    static float floats[5][N];
    static uint16_t shorts[5][N];
    const int64_t shape[] = {1, N};
    lmsd_tensor columns[5];
    const void *pointers[5];
    double gram[25];
    for (int c = 0; c < 5; c++) {
        void *data = bits == 64 ? (void *)doubles[c] : bits == 32 ? (void *)floats[c] : (void *)shorts[c];
        for (int i = 0; i < N; i++) {
            /* -2 or 4: one bit in either kind of 16 */
            const int odd = (i * (c + 3) + c) % 2;
            doubles[c][i] = floats[c][i] = odd ? -2 : 4;
            shorts[c][i] = odd ? 0xc000 : code == LMSD_DTYPE_BFLOAT ? 0x4080 : 0x4400;
        }
        columns[c] = (lmsd_tensor){data, {LMSD_DEVICE_CPU, 0}, 2, {code, bits, 1}, shape, NULL, 0};
        pointers[c] = &columns[c];
    }
    if (lmsd_gram(NULL, 5, pointers, 25, gram) != LMSD_STATUS_OK) return 1;
    printf("products, code %d, %d bits:", code, bits);
    for (int i = 0; i < 25; i++) printf(" %.17g", gram[i]);
    printf("\n");
    return 0;
}

int main(void) {
    char *solvers = NULL;
    const char *key = "\"name\":\"";
    if (lmsd_solvers(&solvers) != LMSD_STATUS_OK || halves(LMSD_DTYPE_FLOAT) || halves(LMSD_DTYPE_BFLOAT) ||
        products(LMSD_DTYPE_FLOAT, 64) || products(LMSD_DTYPE_FLOAT, 32) || products(LMSD_DTYPE_FLOAT, 16) ||
        products(LMSD_DTYPE_BFLOAT, 16)) {
        fprintf(stderr, "%s\n", lmsd_last_error());
        return 1;
    }
    for (const char *at = strstr(solvers, key); at != NULL; at = strstr(at, key)) {
        char options[100];
        double x[] = {-60, -20, 20, 60};
        const int64_t shape[] = {4, 1};
        lmsd_tensor tensor = {x, {LMSD_DEVICE_CPU, 0}, 2, {LMSD_DTYPE_FLOAT, 64, 1}, shape, NULL, 0};
        lmsd_schedule *schedule = NULL;
        at += strlen(key);
        snprintf(options, sizeof options, "{\"solver\": \"%.*s\", \"nfe\": 7}", (int)strcspn(at, "\""), at);
        if (lmsd_schedule_solve(options, &schedule) != LMSD_STATUS_OK ||
            lmsd_sample(schedule, NULL, &tensor, model, NULL, NULL, &tensor) != LMSD_STATUS_OK) {
            fprintf(stderr, "%s\n", lmsd_last_error());
            return 1;
        }
        printf("%.*s: %.17g %.17g %.17g %.17g\n", (int)strcspn(at, "\""), at, x[0], x[1], x[2], x[3]);
        for (size_t n = 0; n < lmsd_schedule_nfe(schedule); n++) {
            lmsd_node node = {.struct_size = sizeof node};
            lmsd_schedule_node(schedule, n, &node);
            printf("  %.17g %.17g:", node.sigma, node.scale);
            for (size_t j = 0; j < node.weight_count; j++) printf(" %.17g", node.weights[j]);
            printf("\n");
        }
        lmsd_schedule_free(schedule);
    }
    lmsd_string_free(solvers);
    return 0;
}
