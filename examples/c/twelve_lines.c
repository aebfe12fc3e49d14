/* A published solver's schedule, an analytic model, four samples. */
#include <lmsd.h>
#include <stdio.h>

/* The exact prediction of x0 where x0 is 1, with a standard deviation of 0.5. */
static int model(void *user_data, const lmsd_call *call, const void *x, void *denoised) {
    const float *in = ((const lmsd_tensor *)x)->data;
    float *out = ((lmsd_tensor *)denoised)->data;
    double variance = call->sigma * call->sigma;
    (void)user_data;
    for (int i = 0; i < 4; i++) out[i] = (float)((0.25 * in[i] + variance) / (0.25 + variance));
    return 0;
}

int main(void) {
    float x[] = {-60, -20, 20, 60}; /* noise of standard deviation 80 */
    const int64_t shape[] = {4, 1};
    lmsd_tensor tensor = {x, {LMSD_DEVICE_CPU, 0}, 2, {LMSD_DTYPE_FLOAT, 32, 1}, shape, NULL, 0};
    lmsd_schedule *schedule = NULL;
    if (lmsd_schedule_solve("{\"solver\": \"dpmpp_2m\", \"nfe\": 8}", &schedule) != LMSD_STATUS_OK ||
        lmsd_sample(schedule, NULL, &tensor, model, NULL, NULL, &tensor) != LMSD_STATUS_OK) {
        fprintf(stderr, "%s\n", lmsd_last_error());
        return 1;
    }
    printf("%.4f %.4f %.4f %.4f\n", x[0], x[1], x[2], x[3]);
    lmsd_schedule_free(schedule);
    return 0;
}
