/*
 * lmsd: few-step sampling of diffusion and flow models by distilled linear multistep solvers.
 *
 * Generated from src/ffi.rs and src/host.rs by cbindgen; a test checks that it is up to date.
 *
 * Conventions
 * - Handles are opaque: `_new` and the calls that write a handle make one, `_free` frees it, NULL
 *   is fine there. Whoever gets a handle or a text from the library frees it.
 * - Calls return a `lmsd_status`; `lmsd_last_error()` then has one sentence for a person. Outputs
 *   come last and are written on success only.
 * - Structs that cross start with `struct_size`, set by whoever makes the struct.
 * - Callbacks get `user_data` first, run on the thread of the call that needs them, and return 0
 *   to go on. They must not throw or longjmp through the library: keep the exception, return
 *   nonzero, and throw it again when the call has returned (lmsd.hpp does).
 * - No call keeps a pointer after it returns, unless its comment says so.
 * - Coordinates are those of k-diffusion: a state x at noise level sigma, and `denoised`, the
 *   model's prediction of x0. x = x0 + sigma n ("ve": EDM, and epsilon- and v-models so wrapped)
 *   or x = (1 - sigma) x0 + sigma n ("flow").
 * - Different handles may be used on different threads at once; one handle that is not const, on
 *   one thread at a time.
 */


#ifndef LMSD_H
#define LMSD_H

#include <stddef.h>
#include <stdint.h>

/**
 * DLPack's number for memory of the CPU, the only device of the built-in implementation.
 */
#define LMSD_DEVICE_CPU 1

/**
 * DLPack's type code of IEEE floating point numbers: float16, float32, float64.
 */
#define LMSD_DTYPE_FLOAT 2

/**
 * DLPack's type code of bfloat16.
 */
#define LMSD_DTYPE_BFLOAT 4

/**
 * A tensor has at most this many dimensions.
 */
#define LMSD_MAX_DIMENSIONS 32

/**
 * Version of this ABI. A binding compares it with `lmsd_abi_version()` when it loads the library.
 */
#define LMSD_ABI_VERSION 1

/**
 * What went wrong, as a number that never changes its meaning. Zero is success; new kinds are
 * appended. The sentence that goes with it names the value at fault and what would be right.
 */
enum lmsd_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Success.
   */
  LMSD_STATUS_OK = 0,
  /**
   * An argument is null, out of range, or of the wrong kind.
   */
  LMSD_STATUS_INVALID_ARGUMENT = 1,
  /**
   * A schedule, or a schedule file, breaks a rule of the format.
   */
  LMSD_STATUS_INVALID_SCHEDULE = 2,
  /**
   * A tensor has a shape, dtype, device or layout that this call does not take.
   */
  LMSD_STATUS_INVALID_TENSOR = 3,
  /**
   * A file could not be read or written.
   */
  LMSD_STATUS_IO = 4,
  /**
   * The host's callback asked to stop (returned nonzero).
   */
  LMSD_STATUS_STOPPED = 5,
  /**
   * The model returned a value that is not finite.
   */
  LMSD_STATUS_NON_FINITE = 6,
  /**
   * A schedule, checkpoint or backend was made for something else than what it meets here.
   */
  LMSD_STATUS_MISMATCH = 7,
  /**
   * The call does not fit the object's present state, such as a step after the last.
   */
  LMSD_STATUS_WRONG_STATE = 8,
  /**
   * Memory could not be had.
   */
  LMSD_STATUS_OUT_OF_MEMORY = 9,
  /**
   * A fault of the library itself; please report it with the text.
   */
  LMSD_STATUS_INTERNAL = 10,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum lmsd_status lmsd_status;
#else
typedef int32_t lmsd_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a distillation leaves; made by `lmsd_distill`, freed by `lmsd_distilled_free`.
 */
typedef struct lmsd_distilled lmsd_distilled;

/**
 * A run whose loop the host owns; made by `lmsd_sampler_new`, freed by `lmsd_sampler_free`. One
 * thread at a time.
 */
typedef struct lmsd_sampler lmsd_sampler;

/**
 * A multistep sampler as data; made by `lmsd_schedule_*`, freed by `lmsd_schedule_free`.
 * It never changes, so any number of threads may use it at once.
 */
typedef struct lmsd_schedule lmsd_schedule;

/**
 * One node of a schedule: a model call and the update that follows it.
 */
typedef struct lmsd_node {
  /**
   * Set to `sizeof(lmsd_node)` by the caller.
   */
  size_t struct_size;
  /**
   * Noise level of the state.
   */
  double sigma;
  /**
   * Time scaling factor: the model is called at `scale * sigma`.
   */
  double scale;
  /**
   * Prediction coefficients over D_n, D_{n-1}, ..., newest first. Valid as long as the schedule.
   */
  const double *weights;
  /**
   * How many there are, 1 to n + 1.
   */
  size_t weight_count;
} lmsd_node;

/**
 * The host's own tensors: any framework, any device. Functions get `user_data` first, run on the
 * thread of the call that needs them, keep no pointer after they return, and return 0 or, to
 * stop that call with `LMSD_STATUS_STOPPED`, anything else. Tensors are opaque to the library.
 *
 * Everywhere a call takes a `const lmsd_host *`, NULL means the built-in CPU backend, where every
 * tensor is a `lmsd_tensor *` (compact row-major float32, float64, float16 or bfloat16).
 */
typedef struct lmsd_host {
  /**
   * Set to `sizeof(lmsd_host)`.
   */
  size_t struct_size;
  /**
   * Handed to every function.
   */
  void *user_data;
  /**
   * Writes a new tensor of the shape, dtype and device of `like`, not NULL, to `*out`. Its
   * contents may be anything.
   */
  int (*alloc)(void *user_data, const void *like, void **out);
  /**
   * Frees a tensor that `alloc` made.
   */
  void (*release)(void *user_data, void *tensor);
  /**
   * `out = sum_i factors[i] * terms[i]`, `count` terms (at least 1), best summed in float32 at
   * least; none of them is `out`. A term with factor 0 counts as absent, even if it is not finite.
   */
  int (*lincomb)(void *user_data,
                 void *out,
                 size_t count,
                 const double *factors,
                 const void *const *terms);
  /**
   * Inner products within each trajectory b of dimension 0, best summed in float64:
   * `out[(b * count + i) * count + j] = <columns[i][b], columns[j][b]>`.
   */
  int (*gram)(void *user_data, size_t count, const void *const *columns, double *out);
  /**
   * Number of trajectories (the size of dimension 0) of a tensor.
   */
  size_t (*batch)(void *user_data, const void *tensor);
  /**
   * Why the last function of this table that returned nonzero on this thread did: returns a
   * `lmsd_status` and writes one sentence to `*text`, valid until the next such function fails. The
   * call then ends with these. May be NULL.
   */
  int (*error)(void *user_data, const char **text);
  /**
   * Writes `count` new tensors, each as `alloc` makes one, to `outs[0]`, `outs[1]`, ..., or none where it
   * fails. They will be combined with one another, in this order, so best lie side by side in memory.
   * `release` gets each of them. May be NULL: then `alloc` makes them one by one.
   */
  int (*alloc_many)(void *user_data, const void *like, size_t count, void **outs);
} lmsd_host;

/**
 * The model: writes to `denoised` its prediction of x0 at `x`, whose noise level is `sigma`,
 * guidance included. Runs on the calling thread, keeps no pointer; returns 0, or anything else to
 * stop the call with `LMSD_STATUS_STOPPED`. The built-in backend's tensors are compact with
 * `byte_offset` 0; the model fills `denoised`'s memory and leaves the descriptor as it is.
 */
typedef int (*lmsd_model)(void *user_data, const void *x, double sigma, void *denoised);

/**
 * What an observer sees after each model call, before the update.
 */
typedef struct lmsd_step {
  /**
   * `sizeof(lmsd_step)` of the library.
   */
  size_t struct_size;
  /**
   * Node, from 0.
   */
  size_t index;
  /**
   * Number of nodes.
   */
  size_t nfe;
  /**
   * Noise level of the state.
   */
  double sigma;
  /**
   * Noise level that the model was told.
   */
  double model_sigma;
  /**
   * The state; valid during the call.
   */
  const void *x;
  /**
   * The model's prediction of x0; valid during the call.
   */
  const void *denoised;
} lmsd_step;

/**
 * Sees every step, for previews and progress. Returns 0, or anything else to stop the call with
 * `LMSD_STATUS_STOPPED`.
 */
typedef int (*lmsd_observer)(void *user_data, const struct lmsd_step *step);

/**
 * How far a distillation is.
 */
typedef struct lmsd_progress {
  /**
   * `sizeof(lmsd_progress)` of the library.
   */
  size_t struct_size;
  /**
   * 0 teacher, 1 ranking the handcrafted solvers, 2 fitting, 3 growing by a node.
   */
  int32_t phase;
  /**
   * NFE of the schedule in work.
   */
  size_t nfe;
  /**
   * Batch calls of the model so far, the teacher's among them.
   */
  uint64_t calls;
  /**
   * How many there will be, at most; an estimate.
   */
  uint64_t calls_expected;
  /**
   * Best held-out distance at this NFE so far; infinite before the first.
   */
  double distance;
  /**
   * Held-out distance of the best handcrafted solver at this NFE; infinite before it is known.
   */
  double handcrafted;
  /**
   * Estimated seconds to the end.
   */
  double seconds_left;
} lmsd_progress;

/**
 * The host's side of a distillation. Functions get `user_data` first, run on the calling thread,
 * keep no pointer after they return, and return 0 or, to stop, anything else.
 */
typedef struct lmsd_problem {
  /**
   * Set to `sizeof(lmsd_problem)`.
   */
  size_t struct_size;
  /**
   * Handed to every function.
   */
  void *user_data;
  /**
   * A tensor of the shape, dtype and device of one batch; its contents are not read.
   */
  const void *like;
  /**
   * Makes batch `batch` current: writes its x_T (noise level `sigma_max`) and sets whatever the
   * model depends on (prompts, labels). The same index always gives the same batch. Fitted
   * batches count from 0, held-out ones from 2^20, those of `lmsd_compare` from 2^21.
   */
  int (*begin)(void *user_data, uint64_t batch, void *x_t);
  /**
   * The model, for the current batch.
   */
  lmsd_model model;
  /**
   * Hears how far things are after every model call; nonzero ends the run, which then keeps
   * the best so far and succeeds. May be NULL.
   */
  int (*progress)(void *user_data, const struct lmsd_progress *progress);
  /**
   * Which of `ranks` processes this one is, from 0, where several share a distillation. Each rank
   * calls the model for every `ranks`-th batch only; all need the same options, model and batches,
   * and get the same schedules, those of one rank that has all batches.
   */
  size_t rank;
  /**
   * How many processes share the distillation; 0 and 1 mean this one alone.
   */
  size_t ranks;
  /**
   * Adds up `count` values over all ranks, in place: the same call is made on every rank, and each
   * must get the same sums. Fits `MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM,
   * comm)`. Where a rank is lost it must return nonzero in finite time: the call then ends with
   * `LMSD_STATUS_STOPPED`. A rank that fails otherwise tells the others through it, and every rank
   * ends with its error. May be NULL on one rank.
   */
  int (*sum)(void *user_data, size_t count, double *values);
  /**
   * Why the last function of this struct that returned nonzero did: returns a `lmsd_status` and
   * writes one sentence to `*text`, valid until the next one fails. The call's error, on every rank,
   * then says so. May be NULL.
   */
  int (*error)(void *user_data, const char **text);
} lmsd_problem;

/**
 * Where a tensor's memory is. The layout of DLPack's DLDevice.
 */
typedef struct lmsd_device {
  /**
   * DLPack's device type: 1 for the CPU, 2 for CUDA, ...
   */
  int32_t device_type;
  /**
   * Which device of this type, from 0; ignored for the CPU.
   */
  int32_t device_id;
} lmsd_device;

/**
 * The type of a tensor's elements. The layout of DLPack's DLDataType.
 */
typedef struct lmsd_dtype {
  /**
   * 2 for IEEE floating point, 4 for bfloat16.
   */
  uint8_t code;
  /**
   * Bits in an element: 16, 32 or 64.
   */
  uint8_t bits;
  /**
   * Always 1.
   */
  uint16_t lanes;
} lmsd_dtype;

/**
 * A tensor's memory, described. The layout of DLPack's DLTensor, so that a host can pass its own
 * as it is. It owns nothing: `data`, `shape` and `strides` belong to whoever made it, and must
 * stay valid, and unchanged in place, for as long as the function that takes it says.
 */
typedef struct lmsd_tensor {
  /**
   * Start of the memory, on `device`. The first element is `byte_offset` bytes further on.
   */
  void *data;
  struct lmsd_device device;
  /**
   * Number of dimensions, 1 to 32.
   */
  int32_t ndim;
  struct lmsd_dtype dtype;
  /**
   * `ndim` sizes, in elements, each 1 or more. Dimension 0 counts trajectories.
   */
  const int64_t *shape;
  /**
   * `ndim` distances between neighbours, in elements; or null: row-major without gaps.
   */
  const int64_t *strides;
  /**
   * From `data` to the first element, in bytes.
   */
  uint64_t byte_offset;
} lmsd_tensor;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The ABI version of the loaded library; equal to `LMSD_ABI_VERSION` of the header it goes with.
 */
uint32_t lmsd_abi_version(void);

/**
 * The version of the library, such as "0.1.0". The text is static.
 */
const char *lmsd_version(void);

/**
 * One sentence on the last call of this thread that failed; empty before the first failure. It
 * names the value at fault and what would be right. The text is valid until the next call of
 * this library on this thread that fails.
 */
const char *lmsd_last_error(void);

/**
 * Frees a text that a call of this library wrote into a `char **`. NULL is fine.
 *
 * # Safety
 * `text` is NULL or such a text, as long as it was written, freed once.
 */
void lmsd_string_free(char *text);

/**
 * Makes the schedule of a published solver on a grid of noise levels.
 *
 * `options`: a JSON object, all fields optional: `"solver"` (see `lmsd_solvers`), `"nfe"`,
 * `"grid"` (`{"kind": "karras", "rho": 7}`, `log`, `linear`, `flow` with `shift`, `list` with
 * `sigmas`), `"process"` (`"ve"` or `"flow"`), `"sigma_min"`, `"sigma_max"`, `"sigma_end"`,
 * `"sigma_start"` (noise level of the x_T that the host will hand in; default `sigma_max`),
 * `"jump_to_zero"`, `"lower_order_final"`.
 *
 * # Safety
 * `options` is a NUL-terminated string, `out` writable.
 */
lmsd_status lmsd_schedule_solve(const char *options, struct lmsd_schedule **out);

/**
 * Reads a schedule from the text of its file (`length` bytes of UTF-8, 1 MiB at most, no NUL
 * needed). Whatever breaks the format is refused with a sentence that says where.
 *
 * # Safety
 * `json` is readable for `length` bytes, `out` writable.
 */
lmsd_status lmsd_schedule_from_json(const char *json, size_t length, struct lmsd_schedule **out);

/**
 * Reads a schedule file (`path` in UTF-8).
 *
 * # Safety
 * `path` is a NUL-terminated string, `out` writable.
 */
lmsd_status lmsd_schedule_load(const char *path, struct lmsd_schedule **out);

/**
 * Writes a schedule file, whole or not at all.
 *
 * # Safety
 * `schedule` is valid, `path` a NUL-terminated string.
 */
lmsd_status lmsd_schedule_save(const struct lmsd_schedule *schedule, const char *path);

/**
 * The text of the schedule's file, to be freed with `lmsd_string_free`.
 *
 * # Safety
 * `schedule` is valid, `out` writable.
 */
lmsd_status lmsd_schedule_to_json(const struct lmsd_schedule *schedule, char **out);

/**
 * Number of model calls; 0 for NULL.
 *
 * # Safety
 * `schedule` is NULL or valid.
 */
size_t lmsd_schedule_nfe(const struct lmsd_schedule *schedule);

/**
 * Noise level of the x_T that sampling starts from; NaN for NULL.
 *
 * # Safety
 * `schedule` is NULL or valid.
 */
double lmsd_schedule_sigma_start(const struct lmsd_schedule *schedule);

/**
 * Noise level of the result; NaN for NULL.
 *
 * # Safety
 * `schedule` is NULL or valid.
 */
double lmsd_schedule_sigma_end(const struct lmsd_schedule *schedule);

/**
 * Node `index`, 0 to nfe - 1. `out->struct_size` is set by the caller before the call.
 *
 * # Safety
 * `schedule` is valid, `out` writable for its `struct_size`.
 */
lmsd_status lmsd_schedule_node(const struct lmsd_schedule *schedule,
                               size_t index,
                               struct lmsd_node *out);

/**
 * The schedule for a state that is at noise level `sigma` already, as image-to-image hosts have it:
 * above its sigma_end, at most its sigma_start. Above the first node's sigma all nodes stay. Below
 * it the node nearest to `sigma` in log sigma moves there and those before it are dropped, so NFE
 * falls; rows that lose predictions are completed on the oldest one left. `schedule` stays as it is.
 *
 * # Safety
 * `schedule` is valid, `out` writable.
 */
lmsd_status lmsd_schedule_start_at(const struct lmsd_schedule *schedule,
                                   double sigma,
                                   struct lmsd_schedule **out);

/**
 * Refuses a schedule that was made for something else than `host`, a JSON object of the host's
 * own values: `"process"`, and any of `"model"`, `"model_hash"`, `"guidance_scale"`,
 * `"latent_shape"`, `"sigma_min"`, `"sigma_max"`, `"shift"`. Only what both sides state is
 * compared; `LMSD_STATUS_MISMATCH` names the first value that differs.
 *
 * # Safety
 * `schedule` is valid, `host` a NUL-terminated string.
 */
lmsd_status lmsd_schedule_check(const struct lmsd_schedule *schedule, const char *host);

/**
 * Frees a schedule. NULL is fine.
 *
 * # Safety
 * `schedule` is NULL or made by this library, freed once.
 */
void lmsd_schedule_free(struct lmsd_schedule *schedule);

/**
 * The published solvers as a JSON array of `{"name", "about", "stages"}` (model calls a step), to
 * be freed with `lmsd_string_free`.
 *
 * # Safety
 * `out` is writable.
 */
lmsd_status lmsd_solvers(char **out);

/**
 * The tensors of the libtorch that this process has loaded, on its CPU and CUDA devices: a host
 * whose tensors are `lmsd_tensor *` of any strides but negative ones, in memory of the caller's, used
 * as it is, without copies. Its operations run on libtorch's current stream of the calling thread.
 *
 * This library links no libtorch and loads none. `library` is the path of the library of tensors
 * that fits the loaded one, such as liblmsd_torch_2_11.so, or NULL for that beside this library. It
 * is loaded once and for good. `LMSD_STATUS_WRONG_STATE` where no libtorch is loaded,
 * `LMSD_STATUS_MISMATCH` where there is no library for its version; use the host's own tensors then.
 * `*out` is static.
 *
 * # Safety
 * `library` is NULL or a NUL-terminated string, `out` writable.
 */
lmsd_status lmsd_torch_host(const char *library,
                            const struct lmsd_host **out);

/**
 * The library's own linear combination: `out = sum_i factors[i] * terms[i]` in one pass over
 * memory, summed in float32 or float64. `out` may not be one of the terms.
 *
 * # Safety
 * `host` is NULL or valid; `factors` and `terms` have `count` entries; tensors are of this host.
 */
lmsd_status lmsd_lincomb(const struct lmsd_host *host,
                         size_t count,
                         const double *factors,
                         const void *const *terms,
                         void *out);

/**
 * The library's own inner products within each trajectory, summed in float64:
 * `out[(b * count + i) * count + j] = <columns[i][b], columns[j][b]>`; `length` is the room in
 * `out`, the batch times count squared.
 *
 * # Safety
 * `host` is NULL or valid; `columns` has `count` entries; `out` has room for `length` values.
 */
lmsd_status lmsd_gram(const struct lmsd_host *host,
                      size_t count,
                      const void *const *columns,
                      size_t length,
                      double *out);

/**
 * Runs `schedule` from `x_t` (noise level `lmsd_schedule_sigma_start`) and writes the end point
 * to `out`, which may be `x_t`. `observer` may be NULL. `out` is untouched on failure.
 * `LMSD_STATUS_NON_FINITE` names the node whose prediction was not finite.
 *
 * # Safety
 * `schedule` is valid, `host` NULL or valid, tensors are of this host and of one shape.
 */
lmsd_status lmsd_sample(const struct lmsd_schedule *schedule,
                        const struct lmsd_host *host,
                        const void *x_t,
                        lmsd_model model,
                        lmsd_observer observer,
                        void *user_data,
                        void *out);

/**
 * Starts a run from `x_t` (noise level `lmsd_schedule_sigma_start`), which is copied, as is the
 * schedule. `host`'s functions and user data must live as long as the sampler.
 *
 * # Safety
 * `schedule` is valid, `host` NULL or valid, `x_t` a tensor of it, `out` writable.
 */
lmsd_status lmsd_sampler_new(const struct lmsd_schedule *schedule,
                             const struct lmsd_host *host,
                             const void *x_t,
                             struct lmsd_sampler **out);

/**
 * The node to be evaluated next, from 0; equal to the schedule's NFE when the run is over, and
 * for NULL 0.
 *
 * # Safety
 * `sampler` is NULL or valid.
 */
size_t lmsd_sampler_index(const struct lmsd_sampler *sampler);

/**
 * Where to call the model next: writes the state to `x` and its noise level, as the model is to
 * be told it, to `sigma`. `LMSD_STATUS_WRONG_STATE` when the run is over.
 *
 * # Safety
 * `sampler` is valid, `sigma` writable, `x` a tensor of the sampler's host.
 */
lmsd_status lmsd_sampler_next(const struct lmsd_sampler *sampler, double *sigma, void *x);

/**
 * Advances with the model's prediction at the present node, which is copied. Refuses one that is
 * not finite, and a step after the last; the sampler then stays where it is.
 *
 * # Safety
 * `sampler` is valid, `denoised` a tensor of its host.
 */
lmsd_status lmsd_sampler_step(struct lmsd_sampler *sampler, const void *denoised);

/**
 * Writes the state where the run stands to `out`: the end point when it is over.
 *
 * # Safety
 * `sampler` is valid, `out` a tensor of its host.
 */
lmsd_status lmsd_sampler_result(const struct lmsd_sampler *sampler, void *out);

/**
 * Frees a sampler. NULL is fine.
 *
 * # Safety
 * `sampler` is NULL or made by `lmsd_sampler_new`, freed once.
 */
void lmsd_sampler_free(struct lmsd_sampler *sampler);

/**
 * Distils schedules for the model of `problem`, by forward calls only.
 *
 * `options`: a JSON object, all fields optional: `"nfe"`, `"nfe_from"` (a family from there to
 * `nfe` in one run), `"process"`, `"sigma_min"`, `"sigma_max"`, `"sigma_end"`, `"trajectories"`,
 * `"held_out"`, `"teacher"`, `"teacher_nfe"`, `"teacher_grid"`, `"sums"` (`"free"` or `"affine"`),
 * `"order"`, `"fit_sigmas"`, `"fit_start"`, `"fit_scales"`, `"fit_weights"`, `"difference_step"`, `"iterations"`,
 * `"max_calls"`, `"max_seconds"`, `"checkpoint"` (a file; a run that was killed resumes from it to
 * the same result), `"made_for"`, `"seeds"`.
 *
 * The result holds one schedule for each NFE. One that does not beat every handcrafted solver on
 * held-out trajectories is replaced by the best of those and says so (`"improved": false`).
 *
 * # Safety
 * `options` is a NUL-terminated string, `host` NULL or valid, `problem` valid, `out` writable.
 */
lmsd_status lmsd_distill(const char *options,
                         const struct lmsd_host *host,
                         const struct lmsd_problem *problem,
                         struct lmsd_distilled **out);

/**
 * Number of schedules, smallest NFE first; 0 for NULL.
 *
 * # Safety
 * `distilled` is NULL or valid.
 */
size_t lmsd_distilled_count(const struct lmsd_distilled *distilled);

/**
 * A copy of schedule `index`, to be freed with `lmsd_schedule_free`.
 *
 * # Safety
 * `distilled` is valid, `out` writable.
 */
lmsd_status lmsd_distilled_schedule(const struct lmsd_distilled *distilled,
                                    size_t index,
                                    struct lmsd_schedule **out);

/**
 * How the distillation went, as JSON: calls, seconds, why it ended, and for each NFE its distances
 * and its course. To be freed with `lmsd_string_free`.
 *
 * # Safety
 * `distilled` is valid, `out` writable.
 */
lmsd_status lmsd_distilled_report(const struct lmsd_distilled *distilled, char **out);

/**
 * Frees the result of a distillation. NULL is fine.
 *
 * # Safety
 * `distilled` is NULL or made by `lmsd_distill`, freed once.
 */
void lmsd_distilled_free(struct lmsd_distilled *distilled);

/**
 * Mean Euclidean distances of `count` schedules to the teacher's end points, over `"held_out"`
 * trajectories that no distillation sees (batches from 2^21). `options` as in `lmsd_distill`.
 *
 * # Safety
 * As in `lmsd_distill`; `schedules` and `distances` have `count` entries.
 */
lmsd_status lmsd_compare(const char *options,
                         const struct lmsd_host *host,
                         const struct lmsd_problem *problem,
                         size_t count,
                         const struct lmsd_schedule *const *schedules,
                         double *distances);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LMSD_H */
