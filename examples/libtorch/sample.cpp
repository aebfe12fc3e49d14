// Sampling with libtorch's own tensors, without copies: x_T and the result are the program's, the model sees
// the library's, which are libtorch's too.
//
//     sample [--library liblmsd_torch_2_11.so] [--model net.pt]     CPU; CUDA where there is a device
//
// net.pt: a TorchScript network (x [B, 4, 16, 16], sigma [B]) -> denoised. Without one, the exact denoiser of
// data that are normally distributed with deviation 0.5.

#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include <dlfcn.h>

#include <torch/script.h>

#include <lmsd.hpp>

// What lmsd needs to know of a tensor. Its sizes and strides are the tensor's own.
static lmsd_tensor describe(const at::Tensor &tensor) {
    lmsd_tensor about{};
    about.data = tensor.data_ptr();
    about.device = tensor.is_cuda() ? lmsd_device{2, tensor.device().index()} : lmsd_device{1, 0};
    about.ndim = static_cast<std::int32_t>(tensor.dim());
    about.dtype = {LMSD_DTYPE_FLOAT, static_cast<std::uint8_t>(8 * tensor.element_size()), 1};
    about.shape = tensor.sizes().data();
    about.strides = tensor.strides().data();
    return about;
}

// A tensor over the memory that lmsd describes.
static at::Tensor view(const void *tensor, const at::TensorOptions &options) {
    const auto *about = static_cast<const lmsd_tensor *>(tensor);
    at::IntArrayRef sizes(about->shape, about->ndim), strides(about->strides, about->ndim);
    return at::from_blob(static_cast<char *>(about->data) + about->byte_offset, sizes, strides, options);
}

struct Model {
    at::TensorOptions options;
    torch::jit::Module network;
    bool has_network = false, fails = false;
    int calls = 0;
    std::exception_ptr error;

    at::Tensor denoise(const at::Tensor &x, double sigma) {
        if (fails) return at::matmul(x, at::ones({3, 3}, options)); // shapes that do not fit: libtorch throws
        if (!has_network) return x * (0.25 / (0.25 + sigma * sigma));
        return network.forward({x, at::full({x.size(0)}, sigma, options)}).toTensor();
    }

    // An exception must not cross the library: it is kept, and thrown again after the call.
    static int call(void *user_data, const lmsd_call *at, const void *x, void *denoised) {
        auto &self = *static_cast<Model *>(user_data);
        try {
            at::NoGradGuard no_grad;
            self.calls++;
            view(denoised, self.options).copy_(self.denoise(view(x, self.options), at->sigma));
            return 0;
        } catch (...) {
            self.error = std::current_exception();
            return 1;
        }
    }

    void check(lmsd_status status) {
        if (error) std::rethrow_exception(std::exchange(error, nullptr));
        if (status != LMSD_STATUS_OK) throw std::runtime_error(lmsd_last_error());
    }
};

static void run(const char *library, const char *model_path) {
    // Nothing here calls into libtorch's CUDA library, so the linker leaves it out.
    dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
    const lmsd_host *host = nullptr;
    if (lmsd_torch_host(library, &host) != LMSD_STATUS_OK) throw std::runtime_error(lmsd_last_error());

    Model model;
    model.options = at::TensorOptions().dtype(at::kFloat).device(at::hasCUDA() ? at::kCUDA : at::kCPU);
    if (model_path != nullptr) {
        model.network = torch::jit::load(model_path, model.options.device());
        model.has_network = true;
    }
    lmsd::Schedule schedule = lmsd::Schedule::solve("{\"solver\": \"dpmpp_2m\", \"nfe\": 8}");

    // Channels last, as fast networks have them: any strides will do.
    at::Tensor x_t = at::randn({64, 4, 16, 16}, model.options).mul_(80).contiguous(at::MemoryFormat::ChannelsLast);
    at::Tensor x_0 = at::empty_like(x_t);
    void *memory = x_0.data_ptr();
    lmsd_tensor from = describe(x_t), to = describe(x_0);
    model.check(lmsd_sample(schedule.get(), host, &from, Model::call, nullptr, &model, &to));
    std::printf("%s, %d calls, standard deviation %.3f, result %s\n", model.options.device().str().c_str(),
                model.calls, x_0.std().item<double>(),
                x_0.data_ptr() == memory && to.data == memory ? "in place" : "elsewhere");

    // The same by the built-in tensors, which are on the CPU and row-major.
    model.options = model.options.device(at::kCPU);
    if (model.has_network) model.network.to(at::kCPU);
    at::Tensor start = x_t.cpu().contiguous(), end = at::empty_like(start);
    from = describe(start), to = describe(end);
    model.check(lmsd_sample(schedule.get(), nullptr, &from, Model::call, nullptr, &model, &to));
    double difference = (x_0.cpu() - end).abs().max().item<double>();
    std::printf("largest difference from the built-in tensors: %.1e\n", difference);
    if (!(difference < 1e-3)) throw std::runtime_error("the two results must be alike");

    model.fails = true;
    try {
        model.check(lmsd_sample(schedule.get(), host, &from, Model::call, nullptr, &model, &to));
        throw std::runtime_error("libtorch's exception was lost");
    } catch (const c10::Error &error) {
        std::printf("the model's exception came back: %s\n", error.what_without_backtrace());
    }
}

int main(int count, char **arguments) {
    const char *library = nullptr, *model = nullptr;
    for (int i = 1; i + 1 < count; i += 2) {
        if (std::strcmp(arguments[i], "--library") == 0) library = arguments[i + 1];
        if (std::strcmp(arguments[i], "--model") == 0) model = arguments[i + 1];
    }
    try {
        run(library, model);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
