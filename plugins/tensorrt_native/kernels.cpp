#include "tensorrt_native/kernels.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <new>

#include "tensorrt_native/images.h"

namespace dela::trt {

namespace {

constexpr int kMajor = 75, kMinor = 76;  // attributes: the two parts of the compute capability
constexpr int kLowest = 80;
constexpr int kRelaxed = 2;
// Statuses that say the image is not for this driver or GPU, where another may be: invalid image,
// no binary for the GPU, invalid PTX, PTX of a newer version.
constexpr int kInvalidImage = 200, kNoBinary = 209, kInvalidPtx = 218, kNewerPtx = 222;

// Loading and unloading end no graph that another thread captures meanwhile.
class Relaxed {
 public:
  explicit Relaxed(const Driver& driver) noexcept : driver_(driver) {
    driver_.cuThreadExchangeStreamCaptureMode(&mode_);
  }
  ~Relaxed() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }

 private:
  const Driver& driver_;
  int mode_ = kRelaxed;
};

// How well an image fits a GPU, 0 for not at all: the newest binary of the GPU's own generation
// that is not newer than it, then PTX.
int fitness(const Image& image, int capability) noexcept {
  if (image.architecture > capability) return 0;
  if (image.ptx) return 1;
  return image.architecture / 10 == capability / 10 ? 2 + image.architecture % 10 : 0;
}

struct Cache {
  std::mutex lock;
  std::map<void*, std::weak_ptr<const Kernels>> loaded;  // by context
};

Cache& cache() {
  // Never destroyed: TensorRT may hold plugins until the process ends.
  static Cache& one = *new Cache;
  return one;
}

}  // namespace

std::shared_ptr<const Kernels> Kernels::of_current_context(Problem& problem) noexcept try {
  const Driver* found = driver(problem);
  if (found == nullptr) return nullptr;
  void* context = nullptr;
  if (const int status = found->cuCtxGetCurrent(&context); status != 0 || context == nullptr) {
    problem.say("no CUDA context is current: %s", status ? found->error(status) : "none was made");
    return nullptr;
  }
  const std::lock_guard<std::mutex> guard(cache().lock);
  std::weak_ptr<const Kernels>& known = cache().loaded[context];
  if (std::shared_ptr<const Kernels> kernels = known.lock()) return kernels;
  const auto kernels = std::make_shared<Kernels>(*found, context);
  if (!kernels->load(problem)) return nullptr;
  known = kernels;
  return kernels;
} catch (const std::bad_alloc&) {
  problem.say("out of memory");
  return nullptr;
}

Kernels::~Kernels() {
  if (module_ == nullptr) return;
  const Relaxed relaxed(driver_);
  // Fails when the context or the whole driver is gone already, and the module with it.
  if (driver_.cuCtxPushCurrent_v2(context_) != 0) return;
  driver_.cuModuleUnload(module_);
  driver_.cuCtxPopCurrent_v2(&context_);
}

bool Kernels::load(Problem& problem) noexcept {
  int device = 0, major = 0, minor = 0;
  if (driver_.cuCtxGetDevice(&device) != 0 ||
      driver_.cuDeviceGetAttribute(&major, kMajor, device) != 0 ||
      driver_.cuDeviceGetAttribute(&minor, kMinor, device) != 0) {
    return problem.say("the GPU does not tell its compute capability");
  }
  const int capability = 10 * major + minor;
  if (capability < kLowest) {
    return problem.say("the GPU has compute capability %d.%d; the kernels need 8.0 or newer", major,
                       minor);
  }
  const Relaxed relaxed(driver_);
  int status = kNoBinary;
  for (int wanted = 12; wanted > 0 && module_ == nullptr; --wanted) {
    for (int i = 0; i < kImageCount && module_ == nullptr; ++i) {
      if (fitness(kImages[i], capability) != wanted) continue;
      status = driver_.cuModuleLoadData(&module_, kImages[i].data);
      if (status == 0) continue;
      module_ = nullptr;
      if (status != kInvalidImage && status != kNoBinary && status != kInvalidPtx &&
          status != kNewerPtx) {
        return problem.say("the kernels do not load: %s", driver_.error(status));
      }
    }
  }
  if (module_ == nullptr) {
    return problem.say("no kernels for compute capability %d.%d load: %s; update the driver", major,
                       minor, driver_.error(status));
  }
  for (int i = 0; i < cuda::kKernels; ++i) {
    status = driver_.cuModuleGetFunction(&functions_[i], module_, cuda::kKernelNames[i]);
    if (status != 0) return problem.say("%s: %s", cuda::kKernelNames[i], driver_.error(status));
  }
  return true;
}

bool Kernels::launch(Kernel kernel, unsigned blocks, void** arguments, void* stream,
                     Problem& problem) const noexcept {
  constexpr unsigned threads = cuda::kThreads;
  const int status = driver_.cuLaunchKernel(functions_[kernel], blocks, 1, 1, threads, 1, 1, 0,
                                            stream, arguments, nullptr);
  return status == 0 || problem.say("%s with %u blocks failed: %s", cuda::kKernelNames[kernel], blocks,
                                    driver_.error(status));
}

}  // namespace dela::trt
