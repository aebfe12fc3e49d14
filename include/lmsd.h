/*
 * lmsd: few-step sampling of diffusion and flow models by distilled linear multistep solvers.
 *
 * Generated from src/ffi and src/host.rs by cbindgen; a test checks that it is up to date.
 *
 * Conventions
 * - Handles are opaque: `_new` and the calls that write a handle make one, `_free` frees it, NULL
 *   is fine there. Whoever gets a handle or a text from the library frees it.
 * - Calls return a `lmsd_status`; `lmsd_last_error()` then has one sentence for a person. Outputs
 *   come last and are written on success only.
 * - Structs that cross start with `struct_size`, set by whoever makes the struct, and may grow at their
 *   end. The library takes one of an older version, whose missing fields count as 0, and one of a newer
 *   version if what is new in it is 0. To one that the library fills in it writes what fits its size. Of
 *   one that a callback is given, read what lies within its size.
 * - Callbacks get `user_data` first, run on the thread of the call that needs them, and return 0
 *   to go on. What one that returns nonzero has written is not taken: a tensor that it made stays the
 *   host's. They must not throw or longjmp through the library: keep the exception, return nonzero, and
 *   throw it again when the call has returned (lmsd.hpp does).
 * - No call keeps a pointer after it returns, unless its comment says so. Options are NUL-terminated texts
 *   of at most 16 MiB, JSON objects; "{}" has all defaults, NULL is refused.
 * - Coordinates are those of k-diffusion: a state x at noise level sigma, and `denoised`, the
 *   model's prediction of x0. x = x0 + sigma n ("ve": EDM, and epsilon- and v-models so wrapped)
 *   or x = (1 - sigma) x0 + sigma n ("flow").
 * - No memory: LMSD_STATUS_OUT_OF_MEMORY, and outputs are as they were. What has a size that the host or a
 *   file decides is asked for so that it can be refused. Small pieces (texts, lists) that the system does
 *   not give come from a reserve of 4 MiB in the library's image, and the call ends with that status as
 *   soon as it can; what it made is freed. The process ends only where Rust and the C library themselves
 *   get nothing: for pieces of up to 64 bytes while the library makes its threads, once, if 1 MiB was to
 *   be had just before; for 2.3 KB a thread, which the loader takes in a thread's first call where the
 *   library was loaded by dlopen; and where a text of more than 64 KiB, or a fit of more than 16 model calls,
 *   finds memory gone that was there when the call looked for it.
 * - Threads: different handles may be used on different threads at once; one handle that is not const, on
 *   one thread at a time; one that is const, on any number. A text or a handle may be freed on another
 *   thread than it was made on. Calls share the library's threads, and nothing else that they would wait for.
 * - Callbacks may call the library: every function, any handle but those that the running call was given,
 *   which they may not free or change. A sampler has its own copy of its schedule, which may be freed while
 *   the sampler lives.
 * - The library starts threads of its own in the first call with built-in tensors that are together larger
 *   than 8 MiB: as many as the process may use cores, or as RAYON_NUM_THREADS says. They run none of
 *   the host's code and sleep between calls. Where none can be made the calling thread does their work. A child of
 *   fork may go on calling, also where other threads of its parent were in a call, and gets threads
 *   of its own; what those other threads were at is lost.
 * - Unloading: after dlclose the library stays in memory, where its threads have their code, and dlopen
 *   gives the same one again (Linux). Elsewhere do not unload it.
 * - Stack: 64 KiB are enough for every call but `lmsd_distill` and `lmsd_compare`, which take 128 KiB; and what
 *   callbacks need on top.
 * - Floating point: a call computes in round-to-nearest with denormal numbers, whatever the thread has set
 *   (rounding mode, FTZ, DAZ), and puts that back. Callbacks have what the thread had (x86-64 and AArch64).
 *   The locale has no effect. `errno` may change.
 * - A fault of the library ends a call with LMSD_STATUS_INTERNAL and prints nothing: `lmsd_last_error()`
 *   has its text and place.
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
#define LMSD_ABI_VERSION 2

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
   * A schedule, checkpoint or library does not fit the model, the run or the process that it is used with.
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
 * What a call of the model is for.
 */
enum lmsd_purpose
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Sampling: `lmsd_sample`.
   */
  LMSD_PURPOSE_SAMPLE = 0,
  /**
   * A run of the teacher, whose end points a schedule is measured against. `node` and `nfe` are the teacher's.
   */
  LMSD_PURPOSE_TEACHER = 1,
  /**
   * Measuring published solvers and other schedules that a fit may start from.
   */
  LMSD_PURPOSE_RANKING = 2,
  /**
   * Fitting: linearisations, trials, looks at the held-out batches, the place of a new node.
   */
  LMSD_PURPOSE_FIT = 3,
  /**
   * The schedules of `lmsd_compare`.
   */
  LMSD_PURPOSE_COMPARE = 4,
  /**
   * Seven calls at the start of a distillation that find out whether the same call gives the same result, and one
   * more, without guidance, where guidance is fitted.
   * They belong to no schedule: `node` and `nfe` are 0.
   */
  LMSD_PURPOSE_CHECK = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum lmsd_purpose lmsd_purpose;
#else
typedef int32_t lmsd_purpose;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a distillation or a comparison is doing.
 */
enum lmsd_phase
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Checking the model and the noise, and finding the teacher's end points.
   */
  LMSD_PHASE_TEACHER = 0,
  /**
   * Ranking the published solvers.
   */
  LMSD_PHASE_RANK = 1,
  /**
   * Fitting.
   */
  LMSD_PHASE_FIT = 2,
  /**
   * Looking for the place of a new node.
   */
  LMSD_PHASE_GROW = 3,
  /**
   * The plan is made: told once, before the long part, with the calls and seconds that it will take.
   */
  LMSD_PHASE_PLAN = 4,
  /**
   * Comparing schedules: `lmsd_compare`.
   */
  LMSD_PHASE_COMPARE = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum lmsd_phase lmsd_phase;
#else
typedef int32_t lmsd_phase;
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
  /**
   * How much of the guidance this call has, as in `lmsd_call`.
   */
  double guidance;
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
   * contents may be anything. One table serves tensors of many shapes, in any number of calls at once:
   * all that are handed in with one another have one shape.
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
  /**
   * Number of elements of a tensor, 0 where that is not known. A distillation checks by it that x_T has
   * the level of noise that it should have. May be NULL.
   */
  size_t (*elements)(void *user_data, const void *tensor);
  /**
   * Writes to `*trajectory` the first trajectory of a tensor that has an element which is not finite, or the
   * number of trajectories where there is none. A run asks so of each prediction. May be NULL: then `gram` tells.
   */
  int (*not_finite)(void *user_data, const void *tensor, size_t *trajectory);
} lmsd_host;

/**
 * A call of the model.
 */
typedef struct lmsd_call {
  /**
   * `sizeof(lmsd_call)` of the library.
   */
  size_t struct_size;
  /**
   * Node of the schedule in work, from 0.
   */
  size_t node;
  /**
   * Number of nodes of that schedule.
   */
  size_t nfe;
  /**
   * Noise level of `x`, as the model is to be told it: the node's sigma times its scale.
   */
  double sigma;
  /**
   * What the call is for.
   */
  lmsd_purpose purpose;
  /**
   * How much of the guidance to use: the guidance scale is 1 + guidance (w - 1), where w is the one that the user
   * set. 1 but where a schedule was fitted with the option `fit_guidance`; `lmsd_schedule_is_guided` tells.
   */
  double guidance;
} lmsd_call;

/**
 * The model: writes to `denoised` its prediction of x0 at `x`, whose noise level is `call->sigma`,
 * guidance included. Runs on the calling thread, keeps no pointer; returns 0, or anything else to
 * stop the call with `LMSD_STATUS_STOPPED`. The built-in backend's tensors are compact with
 * `byte_offset` 0; the model fills `denoised`'s memory and leaves the descriptor as it is.
 */
typedef int (*lmsd_model)(void *user_data,
                          const struct lmsd_call *call,
                          const void *x,
                          void *denoised);

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
 * How far a distillation is. Told after every model call, and once with the plan.
 */
typedef struct lmsd_progress {
  /**
   * `sizeof(lmsd_progress)` of the library.
   */
  size_t struct_size;
  /**
   * What is being done.
   */
  lmsd_phase phase;
  /**
   * NFE of the schedule in work.
   */
  size_t nfe;
  /**
   * Batch calls of the model so far, the teacher's among them; with several ranks an estimate for
   * all of them together.
   */
  uint64_t calls;
  /**
   * How many there will be: until the plan is made those before it, then by the plan.
   */
  uint64_t calls_expected;
  /**
   * Best held-out distance at this NFE so far; infinite before the first.
   */
  double distance;
  /**
   * Held-out distance of the best of the strongest published field at this NFE; infinite before it is
   * known.
   */
  double handcrafted;
  /**
   * Estimated seconds to the end.
   */
  double seconds_left;
  /**
   * Trajectories in a batch: so many image-calls is one call.
   */
  size_t batch;
  /**
   * With the plan: how many times nearer to the teacher than the best of the strongest published field
   * similar runs have ended at `nfe`; infinite before.
   */
  double gain_expected;
  /**
   * Measurements that could not be written to the checkpoint so far, as on a full disk. They are kept in memory and
   * tried again with each new one, and the run goes on; one that is killed meanwhile loses them. 0: none.
   */
  size_t unwritten;
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
   * A tensor of the shape, dtype and device of one batch. It must have memory (`data` may not be NULL); its contents are not read.
   */
  const void *like;
  /**
   * Makes batch `batch` current: writes its x_T (noise level `sigma_max`) and sets whatever the
   * model depends on (prompts, labels). The same index always gives the same batch. Fitted
   * batches count from 0, held-out ones from 2^20, those of `lmsd_compare` from 2^21.
   *
   * `x_t` comes from the host's `alloc` with `like`. Where the host's own tensors can change their shape,
   * `begin` may give `x_t` another one for each batch, with as many trajectories; all other tensors of that
   * batch are then made by `alloc` with it or with what came of it.
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
   * How many processes share the distillation, 65536 at most; 0 and 1 mean this one alone.
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
  /**
   * Features of end points, for distances to the teacher's in a space of the host's choice: those of the
   * current batch's `x`, with which the option "feature_weight" goes. Writes a tensor of any shape, with as many
   * trajectories as `x`, to `*features`: with the host's own tensors a new one, which the library hands to the
   * host's `release`; with the built-in ones a `lmsd_tensor` of any dtype, which stays as it is until the next
   * call of this function or the end of the distillation. The same `x` always gives the same features, and all
   * `x` of one shape give features of one shape. A fit asks for them once for each unknown of a linearisation
   * and each trial, on each batch. May be NULL.
   */
  int (*features)(void *user_data, const void *x, void **features);
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
  /**
   * Where that memory is.
   */
  struct lmsd_device device;
  /**
   * Number of dimensions, 1 to 32.
   */
  int32_t ndim;
  /**
   * The type of its elements.
   */
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
 * `options`: a JSON object, all fields optional:
 * - "solver" (string; a name of lmsd_solvers; default: "dpmpp_2m"): The published solver.
 * - "grid" (grid; default: karras with rho 7, for flow the flow grid with shift 1): How noise levels are
 *   spread: {"kind": "karras", "rho": 7} (uniform in sigma^(1/rho)), {"kind": "log"}, {"kind": "linear"},
 *   {"kind": "flow", "shift": 1} (sigma = shift t / (1 + (shift - 1) t), uniform in t), or {"kind": "list",
 *   "sigmas": [...]}, the nfe + 1 levels from the first node to the end.
 * - "nfe" (integer; model calls; 1 to 1000; default: 8): Model calls.
 * - "process" (string; "ve" or "flow"; default: "ve"): How noise is added: "ve" is x = x0 + sigma n, "flow"
 *   is x = (1 - sigma) x0 + sigma n.
 * - "sigma_min" (number; noise level; 1e-9 to below sigma_max; default: 0.002): The last noise level before
 *   0, where the grid needs one.
 * - "sigma_max" (number; noise level; 1e-9 to 1e6, for flow at most 1; default: 80, for flow 1): Noise level
 *   of the first node.
 * - "sigma_end" (number; noise level; 0, or 1e-9 to below sigma_max; default: 0): Noise level of the result.
 * - "sigma_start" (number; noise level; sigma_max to 1e6, for flow at most 1; default: sigma_max): Noise
 *   level of the x_T that the host hands in.
 * - "jump_to_zero" (boolean; default: false): With `sigma_end` 0, on grids that have a level at `sigma_min`
 *   (karras, log, linear): the step that would end there ends at 0, with the same weights, and no call is
 *   spent at `sigma_min`. Refused elsewhere.
 * - "lower_order_final" (boolean; default: true): Whether the order falls towards the end: dpmpp, deis, res
 *   and unipc then use an order of at most the number of steps left, and ipndm takes a step to 0 at first
 *   order. It changes no other solver.
 * - "afs" (boolean; default: false): Analytical first step (arXiv 2210.05475), for solvers of one call a
 *   step: the grid has nfe + 1 steps, and the first of them calls no model but takes D = 0, pure noise. So
 *   the schedule starts at the grid's second level.
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
 * Writes a schedule file (`path` in UTF-8), whole or not at all: into a temporary file in the same folder, which then
 * takes its place. A link is followed, and the file that it leads to replaced; that keeps its permissions and, where
 * the system allows it, its owner. What is no regular file, such as a pipe, is refused, and so is what
 * `lmsd_schedule_load` would refuse. Any number of threads and processes may save to one path at once and read it
 * meanwhile: a reader meets the file of one of them.
 *
 * # Safety
 * `schedule` is valid, `path` a NUL-terminated string.
 */
lmsd_status lmsd_schedule_save(const struct lmsd_schedule *schedule,
                               const char *path);

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
 * Whether a node has another guidance than the host's own: a model that does not look at `guidance` of `lmsd_call`,
 * or of `lmsd_node`, must not be sampled with such a schedule. 1 or 0; 0 for NULL.
 *
 * # Safety
 * `schedule` is NULL or valid.
 */
int lmsd_schedule_is_guided(const struct lmsd_schedule *schedule);

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
 * own values, all optional: `"process"` ("ve" or "flow"), `"model"`, `"model_hash"` (texts), `"guidance_scale"`,
 * `"boundary"` (noise level below which a second model is called), `"guidance_scale_2"` (of that one), `"sigma_min"`,
 * `"sigma_max"`, `"shift"` (numbers, which may differ by 0.1 %) and `"latent_shape"` (whole numbers, without the batch).
 * Only what both sides state is compared; `LMSD_STATUS_MISMATCH` names the first value that differs. A schedule's own
 * `"guidance_range"` (two numbers) holds for the scales between. `"fingerprint"`, `"prediction"`, `"family"` (texts) and
 * `"snapped"` (true or false) may be there, too, and are not compared. The same fields are `"made_for"` of a
 * schedule's file, but for `"process"`.
 *
 * # Safety
 * `schedule` is valid, `host` a NUL-terminated string.
 */
lmsd_status lmsd_schedule_check(const struct lmsd_schedule *schedule,
                                const char *host);

/**
 * Frees a schedule. NULL is fine.
 *
 * # Safety
 * `schedule` is NULL or made by this library, freed once.
 */
void lmsd_schedule_free(struct lmsd_schedule *schedule);

/**
 * The published solvers as a JSON array of objects, to be freed with `lmsd_string_free`: `"name"`, `"about"`,
 * `"arxiv"` (where it was published), `"order"` (of a whole run), `"competes"` (false for another name of one
 * before it), and the numbers of model calls up to 50 that it can have: `"nfes"` where the last step ends at
 * 0, `"nfes_above_zero"` where it ends above.
 *
 * # Safety
 * `out` is writable.
 */
lmsd_status lmsd_solvers(char **out);

/**
 * Every option that a call takes as JSON, to be freed with `lmsd_string_free`: an object with a list for each
 * of `"solve"`, `"distill"`, `"compare"` and `"rivals"`. An option is an object of `"name"`, `"type"`,
 * `"default"` (null where it depends on others), `"default_text"`, `"range"` (in words), `"unit"`, `"about"`,
 * `"values"` where it is one of a few words, `"min"` and `"max"` where these bound a number. Types:
 * `"integer"`, `"number"`, `"boolean"`, `"string"`, `"path"`, `"object"`, `"grid"` (an object with `"kind"`),
 * `"grids"` (arrays of noise levels) and `"schedules"` (objects as in their files).
 *
 * # Safety
 * `out` is writable.
 */
lmsd_status lmsd_options(char **out);

/**
 * The field of published solvers that a distilled schedule must beat, as a JSON array of schedules
 * in the format of their file, to be freed with `lmsd_string_free`. No two have the same table.
 * Their `made_by` says which solver each is and on which grid, such as "karras rho=5, straight to
 * 0, from sigma 8".
 *
 * `options`: a JSON object, all fields optional:
 * - "nfe" (integer; model calls; 1 to 100; default: 5): Model calls. Solvers of two calls a step are in
 *   where it fits.
 * - "field" (string; "published" or "strongest"; default: "strongest"): "published": every solver as hosts'
 *   own options have it, on the grids karras with rho 7 and log (for flow with shift 1 and with `shift`),
 *   each with and without a call at `sigma_min` where the end is 0. "strongest": those first, then karras
 *   with rho 3, 5 and 10 (flow: shifts 2 and 3), full order to the end, first nodes at 0.5, 0.25, 0.1, 0.05
 *   and 0.025 of `sigma_max` (flow: 0.97, 0.93, 0.85 and 0.75), the analytical first step (arXiv
 *   2210.05475), and every solver of one call a step on the grids of `extra`. About 80 and 1100 schedules at
 *   5 NFE.
 * - "process" (string; "ve" or "flow"; default: "ve"): How noise is added: "ve" is x = x0 + sigma n, "flow"
 *   is x = (1 - sigma) x0 + sigma n.
 * - "sigma_min" (number; noise level; above 0, below sigma_max; default: 0.002): Smallest noise level that
 *   the model knows.
 * - "sigma_max" (number; noise level; above sigma_min, for flow at most 1; default: 80, for flow 1): Noise
 *   level of x_T.
 * - "sigma_end" (number; noise level; 0, or below sigma_max; default: 0): Noise level of the result.
 * - "shift" (number; time shift; 1e-3 to 1e3; default: 1): Time shift of a flow model.
 * - "extra" (grids; default: none): Grids beside the published ones, each the nfe + 1 noise levels from the
 *   first node, at most `sigma_max`, to `sigma_end`; such as those of GITS (arXiv 2405.11326). Only the
 *   strongest field has them.
 *
 * `LMSD_STATUS_INVALID_ARGUMENT` names the value that is out of range.
 *
 * # Safety
 * `options` is a NUL-terminated string, `out` writable.
 */
lmsd_status lmsd_rivals(const char *options, char **out);

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
 * Another run that stands where `sampler` does, and goes on without it; to be freed with
 * `lmsd_sampler_free`. Its host is that of `sampler`, whose functions and user data must live as long as it, too.
 *
 * # Safety
 * `sampler` is valid, `out` writable.
 */
lmsd_status lmsd_sampler_copy(const struct lmsd_sampler *sampler,
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
 * Replaces the state at the present node by a copy of `x`, for hosts that change it between steps,
 * as inpainting does; predictions made before are kept. `x` has the noise level of that node: at the
 * first one this is the node's sigma, which may lie below `lmsd_schedule_sigma_start`.
 * `LMSD_STATUS_WRONG_STATE` when the run is over.
 *
 * # Safety
 * `sampler` is valid, `x` a tensor of its host.
 */
lmsd_status lmsd_sampler_set_state(struct lmsd_sampler *sampler,
                                   const void *x);

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
 * Distills schedules for the model of `problem`, by forward calls only.
 *
 * `options`: a JSON object, all fields optional:
 * - "nfe" (integer; model calls; 1 to 50; default: 5): Model calls of the schedule; of the largest one where
 *   a family is wanted.
 * - "nfe_from" (integer; model calls; 1 to 50; default: nfe, which is no family): Model calls of the
 *   smallest schedule of a family, at most `nfe`.
 * - "process" (string; "ve" or "flow"; default: "ve"): How noise is added: "ve" is x = x0 + sigma n, "flow"
 *   is x = (1 - sigma) x0 + sigma n.
 * - "sigma_min" (number; noise level; above 0, below sigma_max; default: 0.002): Smallest noise level that
 *   the model knows.
 * - "sigma_max" (number; noise level; above sigma_min, for flow at most 1; default: 80): Largest noise level
 *   that the model knows, and that of x_T.
 * - "sigma_end" (number; noise level; 0 to sigma_min; default: 0): Noise level of the result: 0, or usually
 *   `sigma_min`.
 * - "trajectories" (integer; trajectories; 1 to 1048576; default: 64): Fresh trajectories that each fit
 *   gets, 4 or 8 at a time, rounded up to whole batches of the host's size. A batch of more than 16 makes
 *   fits dearer than they need to be: they want eight steps at least.
 * - "held_out" (integer; trajectories; 1 to 1048576; default: 24): Trajectories that no fit sees and that
 *   decide what is kept, rounded up to whole batches; in a comparison those that it is made on.
 * - "teacher" (string; a name of lmsd_solvers; default: deis_3, for flow unipc_bh2_3): The published solver
 *   that is the teacher, on a fine grid.
 * - "teacher_nfe" (integer; model calls; 1 to 1000; default: measured, so that its own error is at most a
 *   tenth of the student's; 50 in a comparison): Model calls of the teacher, at least twice `nfe`.
 * - "teacher_grid" (grid; default: karras with rho 7, for flow uniform in t): The teacher's grid of noise
 *   levels. A list is interpolated to the teacher's number of calls.
 * - "weight_sums" (string; "free" or "affine"; default: "free"): Whether the weights of a node may have any
 *   sum, which fits better, or must sum to 1 as in every published data-prediction method.
 * - "objective" (string; "end" or "trajectory"; default: "end"): Which distances a fit lowers: those to the
 *   teacher's end points, or the mean over the schedule's nodes of those to the teacher's states at the same
 *   noise levels, as in DLMS (OpenReview vkOFOUDLTn). What decides between fits, and is reported, is the
 *   distance of end points all the same. "trajectory" takes memory: 2 tensors for each of the teacher's
 *   calls, on the batches of the ranking and those in work, and `nfe` tensors for each unknown of a
 *   Jacobian.
 * - "feature_weight" (number; 0 to 1; default: 1 where the host has features, else 0): Share of the distance
 *   between the host's features in every distance that is fitted to, decides or is reported: 1 is features
 *   alone, in their own unit, and 0 no features. Between them, distances are (1 - w) d / s + w D / S: d is
 *   the distance between end points and D that between their features, s and S are the root mean square
 *   lengths of the teacher's end points and of their features over the trajectories that rank the published
 *   solvers, or over those of a comparison.
 * - "order" (integer; weights; 1 to 50; default: all of its history): Most weights that a node may have.
 * - "fit_sigmas" (boolean; default: true): Whether noise levels may move.
 * - "fit_start" (boolean; default: true): Whether the first noise level may move below that of x_T. Not for
 *   hosts that hand x_T to the model as it is, such as flow pipelines.
 * - "fit_scales" (boolean; default: true): Whether time scaling factors may move.
 * - "fit_weights" (boolean; default: true): Whether weights may move.
 * - "fit_guidance" (boolean; default: false): Whether the guidance of each call may move: how much of the
 *   guidance scale that the user set it has. For models that set theirs as a call says; schedules of 4 to 6
 *   calls then end nearer, by 3 to 20 percent.
 * - "difference_step" (number; 1e-5 to 0.2; default: 0.02): Forward difference in log sigma, log scale and
 *   weights. Hosts that snap sigma to a table, or that compute in half precision, need 0.01 or more.
 * - "iterations" (integer; linearisations; 1 to 10000; default: 40): Most linearisations for each NFE.
 * - "starts" (schedules; at most 64; default: none): Schedules that fits may start from beside the published
 *   ones, each at its own number of calls and for this process, sigma_max and sigma_end; such as those of
 *   the checkpoint that this one was tuned from. One at least must have a number of calls that is asked for.
 * - "max_calls" (integer; calls of a batch; 0 and more; default: no limit): Batch calls of the model that
 *   the run may make, all included, of all ranks together. The plan keeps within them by fewer steps, fewer
 *   held-out trajectories and fewer NFEs.
 * - "max_seconds" (number; seconds; above 0; default: no limit): Seconds that the run may take, kept within
 *   likewise at the speed of the first calls.
 * - "checkpoint" (path; default: none: a run that is killed is lost): File for the run's measurements. Where
 *   it exists already the run resumes from it, on as many ranks as one likes. Only rank 0 reads and writes
 *   it. It is locked while the run goes on: a second run is refused and told the process of the first; when
 *   that ends, or is killed, so does the lock. Damage to its end, as a kill or a power cut leaves it, is cut
 *   off and measured again; elsewhere the file is refused with the number of the line.
 * - "made_for" (object; default: nothing): What the schedules are for, copied into them: any of `model`,
 *   `model_hash`, `fingerprint`, `prediction`, `family`, `guidance_scale`, `guidance_range` (lowest and
 *   highest), `boundary` and `guidance_scale_2` (of a second network below that noise level),
 *   `latent_shape`, `sigma_min`, `sigma_max`, `shift`, `snapped`.
 * - "seeds" (string; default: none): The host's name for its noise, its conditions and its features, copied
 *   into the schedules. A checkpoint made with another one is refused.
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
 * How the distillation went, as a JSON object, to be freed with `lmsd_string_free`: `"library_version"`, `"config"` (the
 * options with all defaults), `"ranks"`, `"batch"` (trajectories in a batch), `"image_calls"` (all calls times those),
 * `"teacher_nfe"` (on the held-out trajectories), `"teacher_calls"` and `"model_calls"` (batch calls of all ranks, the
 * teacher's and all others), `"ranking_calls"` (those of the latter that ranked published solvers), `"seconds"`,
 * `"callback_seconds"` (of them in the host's functions), `"stopped"` (null, or why it ended early: "cancelled", "calls",
 * "seconds"), `"checkpoint_error"` (null, or why the checkpoint lacks its end), and `"family"`, for each NFE, smallest
 * first, an object of `"nfe"`, `"distance"` (held-out; null where every candidate diverges), `"improved"` (whether it
 * beats every published solver) and `"trace"`, its course: objects of `"calls"` (batch calls so far), `"fresh"` (distance on
 * trajectories before it was fitted to them, or null) and `"held_out"` (distance).
 *
 * # Safety
 * `distilled` is valid, `out` writable.
 */
lmsd_status lmsd_distilled_report(const struct lmsd_distilled *distilled,
                                  char **out);

/**
 * Frees the result of a distillation. NULL is fine.
 *
 * # Safety
 * `distilled` is NULL or made by `lmsd_distill`, freed once.
 */
void lmsd_distilled_free(struct lmsd_distilled *distilled);

/**
 * Mean Euclidean distances of `count` schedules to the teacher's end points, over `"held_out"`
 * trajectories that no distillation sees (batches from 2^21).
 *
 * `options`: a JSON object, all fields optional; those of `lmsd_distill` that are not among them are taken and
 * change nothing:
 * - "process" (string; "ve" or "flow"; default: "ve"): How noise is added: "ve" is x = x0 + sigma n, "flow"
 *   is x = (1 - sigma) x0 + sigma n.
 * - "sigma_min" (number; noise level; above 0, below sigma_max; default: 0.002): Smallest noise level that
 *   the model knows.
 * - "sigma_max" (number; noise level; above sigma_min, for flow at most 1; default: 80): Largest noise level
 *   that the model knows, and that of x_T.
 * - "sigma_end" (number; noise level; 0 to sigma_min; default: 0): Noise level of the result: 0, or usually
 *   `sigma_min`.
 * - "held_out" (integer; trajectories; 1 to 1048576; default: 24): Trajectories that no fit sees and that
 *   decide what is kept, rounded up to whole batches; in a comparison those that it is made on.
 * - "teacher" (string; a name of lmsd_solvers; default: deis_3, for flow unipc_bh2_3): The published solver
 *   that is the teacher, on a fine grid.
 * - "teacher_nfe" (integer; model calls; 1 to 1000; default: measured, so that its own error is at most a
 *   tenth of the student's; 50 in a comparison): Model calls of the teacher, at least twice `nfe`.
 * - "teacher_grid" (grid; default: karras with rho 7, for flow uniform in t): The teacher's grid of noise
 *   levels. A list is interpolated to the teacher's number of calls.
 * - "feature_weight" (number; 0 to 1; default: 1 where the host has features, else 0): Share of the distance
 *   between the host's features in every distance that is fitted to, decides or is reported: 1 is features
 *   alone, in their own unit, and 0 no features. Between them, distances are (1 - w) d / s + w D / S: d is
 *   the distance between end points and D that between their features, s and S are the root mean square
 *   lengths of the teacher's end points and of their features over the trajectories that rank the published
 *   solvers, or over those of a comparison.
 * - "made_for" (object; default: nothing): What the schedules are for, copied into them: any of `model`,
 *   `model_hash`, `fingerprint`, `prediction`, `family`, `guidance_scale`, `guidance_range` (lowest and
 *   highest), `boundary` and `guidance_scale_2` (of a second network below that noise level),
 *   `latent_shape`, `sigma_min`, `sigma_max`, `shift`, `snapped`.
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
