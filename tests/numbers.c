/* What schedules and samples come out as, in all their digits: the same on every system, to rounding. */

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

int main(void) {
    char *solvers = NULL;
    const char *key = "\"name\":\"";
    if (lmsd_solvers(&solvers) != LMSD_STATUS_OK) return 1;
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
