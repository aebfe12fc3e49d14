/*
 * Many processes, one distillation, over MPI. Each rank calls the model for its share of the batches; all get the
 * same schedule.
 *
 *     mpicc ranks_mpi.c $(pkg-config --cflags --libs lmsd) -lm -o ranks_mpi && mpirun -n 2 ./ranks_mpi
 *
 * The model is exact: data that are -1 or 1 with noise of deviation 0.1, in 16 dimensions.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <mpi.h>

#include <lmsd.h>

enum { BATCH = 4, DIMENSIONS = 16, SIZE = BATCH * DIMENSIONS };

static uint64_t state;

static double uniform(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}

static int begin(void *calls, uint64_t batch, void *x_t) {
    (void)calls;
    double *x = ((const lmsd_tensor *)x_t)->data;
    state = batch * 1000003; /* the same batch on whichever rank asks for it */
    for (int i = 0; i < SIZE; i++) x[i] = 20 * sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform());
    return 0;
}

static int model(void *calls, const lmsd_call *call, const void *x, void *denoised) {
    const double *in = ((const lmsd_tensor *)x)->data;
    double *out = ((const lmsd_tensor *)denoised)->data;
    double variance = 0.01 + call->sigma * call->sigma;
    ++*(long *)calls;
    for (int i = 0; i < SIZE; i++) {
        double mean = tanh(in[i] / variance); /* of -1 and 1, by their likelihoods */
        out[i] = mean + 0.01 / variance * (in[i] - mean);
    }
    return 0;
}

static int sum(void *calls, size_t count, double *values) {
    (void)calls;
    return MPI_Allreduce(MPI_IN_PLACE, values, (int)count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN); /* so that `sum` can say so */

    int64_t shape[] = {BATCH, DIMENSIONS};
    double nothing; /* of `like` only the description is read */
    lmsd_tensor like = {.data = &nothing,
                        .device = {LMSD_DEVICE_CPU, 0},
                        .ndim = 2,
                        .dtype = {LMSD_DTYPE_FLOAT, 64, 1},
                        .shape = shape};
    long calls = 0, all = 0;
    lmsd_problem problem = {.struct_size = sizeof problem,
                            .user_data = &calls,
                            .like = &like,
                            .begin = begin,
                            .model = model,
                            .rank = (size_t)rank,
                            .ranks = (size_t)ranks,
                            .sum = sum};
    const char *options = "{\"nfe\": 4, \"sigma_min\": 0.01, \"sigma_max\": 20, \"sigma_end\": 0.01}";
    lmsd_distilled *distilled = NULL;
    lmsd_schedule *schedule = NULL;
    if (lmsd_distill(options, NULL, &problem, &distilled) != LMSD_STATUS_OK ||
        lmsd_distilled_schedule(distilled, 0, &schedule) != LMSD_STATUS_OK) {
        fprintf(stderr, "rank %d: %s\n", rank, lmsd_last_error());
        MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    }
    MPI_Allreduce(&calls, &all, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) {
        char *text = NULL;
        if (lmsd_schedule_to_json(schedule, &text) == LMSD_STATUS_OK) printf("%s", text);
        lmsd_string_free(text);
    }
    fprintf(stderr, "rank %d of %d: %ld of %ld calls of the model\n", rank, ranks, calls, all);
    lmsd_schedule_free(schedule);
    lmsd_distilled_free(distilled);
    MPI_Finalize();
    return 0;
}
