#include "tiltflow/reward/torchscript.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <filesystem>
#include <mutex>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/zip_archive.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

const char* const kHowToSave = "save it with torch.jit.save(torch.jit.script(module), FILE)";

// What the interpreter says, with the lines of the module's own source; without the stack of C++
// frames that libtorch appends.
std::string message_of(const std::exception& error) {
  std::string text = error.what();
  text = text.substr(0, text.find("\nException raised from"));
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

bool any_name(const std::vector<std::string>& names, const std::string& part) {
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return name.find(part) != std::string::npos; });
}

// Refuses, each with its own sentence, the other files that Python users save beside TorchScript
// modules.
void require_torchscript_file(const std::string& file) {
  if (!std::filesystem::exists(file)) {
    fail(ErrorKind::kBadFile, cat("reward torchscript: ", file, " is not there"),
         "reward.file names the module");
  }
  if (std::filesystem::is_directory(file)) {
    fail(ErrorKind::kBadFile, cat("reward torchscript: ", file, " is a folder"), kHowToSave);
  }
  const MappedFile mapped(file);
  if (!looks_like_zip({reinterpret_cast<const char*>(mapped.data()), mapped.size()})) {
    fail(ErrorKind::kBadFile, cat("reward torchscript: ", file, ": not a TorchScript module"),
         cat("a module is a program with its weights; ", kHowToSave));
  }
  const std::vector<std::string> names = ZipArchive(mapped, file).names();
  if (any_name(names, "serialized_exported_program") || any_name(names, "archive_format")) {
    fail(ErrorKind::kBadFile,
         cat("reward torchscript: ", file,
             " is a program of torch.export (.pt2), which this library cannot run"),
         kHowToSave);
  }
  if (any_name(names, "/code/") || any_name(names, "constants.pkl")) return;
  if (any_name(names, "data.pkl")) {
    fail(ErrorKind::kBadFile,
         cat("reward torchscript: ", file,
             " was written by torch.save: it holds weights (a state dict or a pickled module), and "
             "no program"),
         cat("load the weights into the module in Python, then ", kHowToSave));
  }
  fail(ErrorKind::kBadFile, cat("reward torchscript: ", file, ": not a TorchScript module"),
       kHowToSave);
}

// How forward is called: with images alone, or with labels as well.
enum class Labels { kNone, kOptional, kNeeded };

Labels labels_of(const torch::jit::Module& module, const std::string& file) {
  const auto method = module.find_method("forward");
  if (!method) {
    fail(ErrorKind::kBadFile,
         cat("reward torchscript: ", file, ": the module has no method forward"));
  }
  const std::vector<c10::Argument>& arguments =
      method->function().getSchema().arguments();  // self, images, labels, ...
  const auto needed = std::count_if(arguments.begin(), arguments.end(), [](const c10::Argument& a) {
    return !a.default_value().has_value();
  });
  if (arguments.size() < 2 || needed > 3) {
    fail(ErrorKind::kBadFile,
         cat("reward torchscript: ", file, ": forward takes ", arguments.size() - 1, " arguments, ",
             std::max<std::int64_t>(0, needed - 1), " of them without a default"),
         "it must be forward(images) or forward(images, labels)");
  }
  if (arguments.size() == 2) return Labels::kNone;
  return needed == 3 ? Labels::kNeeded : Labels::kOptional;
}

class TorchScriptReward final : public Reward {
 public:
  TorchScriptReward(torch::jit::Module module, std::string file)
      : module_(std::move(module)), labels_(labels_of(module_, file)) {
    module_.eval();
    info_.name = cat("torchscript ", file);
    info_.gradient_known = false;
  }
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition& condition) const override {
    // A copy: modules that normalise in place leave the samples to the other terms as they are.
    std::vector<c10::IValue> inputs{to_compute_device(samples).clone()};
    const bool labelled =
        labels_ == Labels::kNeeded || (labels_ == Labels::kOptional && condition.labels.defined());
    if (labelled) {
      if (!condition.labels.defined()) {
        fail(ErrorKind::kConfig, cat("reward ", info_.name, ": the module wants labels"),
             "set labels.kind");
      }
      inputs.emplace_back(to_compute_device(condition.labels));
    }
    return one_a_sample(answer_to(inputs, samples), samples);
  }

 private:
  c10::IValue answer_to(const std::vector<c10::IValue>& inputs, const at::Tensor& samples) const {
    try {
      const std::lock_guard lock(mutex_);  // the first calls specialise the graph
      return module_.forward(inputs);
    } catch (const std::exception& error) {
      fail(ErrorKind::kConfig,
           cat("reward ", info_.name, ": the module failed on ", shape_text(samples.sizes()), " ",
               at::toString(samples.scalar_type()), ":\n", message_of(error)),
           "it is called in evaluation mode with images [N, C, H, W] in [0, 1], N being any "
           "number, and must return [N]; a traced module keeps the N of its example where that "
           "entered a shape");
    }
  }

  // [N], or [N, 1] and the like, in the type of the samples.
  at::Tensor one_a_sample(const c10::IValue& answer, const at::Tensor& samples) const {
    const std::string expected = cat("expected one number a sample, [", samples.size(0), "]");
    if (!answer.isTensor()) {
      fail(ErrorKind::kConfig,
           cat("reward ", info_.name, ": forward returned ", answer.tagKind(), "; ", expected),
           "return one tensor");
    }
    const at::Tensor scores = on_device_of(samples, answer.toTensor());
    const bool fits = scores.numel() == samples.size(0) &&
                      (scores.dim() == 0 || scores.size(0) == samples.size(0));
    if (!fits) {
      fail(ErrorKind::kConfig,
           cat("reward ", info_.name, ": forward returned a tensor ", shape_text(scores.sizes()),
               "; ", expected),
           "leave the batch as the first dimension and take no mean over it; a traced module keeps "
           "the N of its example where that entered a shape");
    }
    if (scores.is_complex()) {
      fail(ErrorKind::kConfig,
           cat("reward ", info_.name, ": forward returned complex numbers; ", expected));
    }
    return scores.reshape({samples.size(0)}).to(samples.scalar_type());
  }

  mutable torch::jit::Module module_;
  mutable std::mutex mutex_;
  Labels labels_;
  RewardInfo info_;
};

}  // namespace

std::shared_ptr<const Reward> make_torchscript(const RewardTerm& term) {
  if (term.file.empty()) {
    fail(ErrorKind::kConfig, "reward torchscript: file is missing",
         "a module saved with torch.jit.save");
  }
  require_torchscript_file(term.file);
  try {
    torch::jit::Module module = torch::jit::load(term.file, compute_device());
    for (const at::Tensor& parameter : module.parameters()) parameter.set_requires_grad(false);
    return std::make_shared<TorchScriptReward>(std::move(module), term.file);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail(ErrorKind::kBadFile,
         cat("reward torchscript: ", term.file, ": the module cannot be loaded:\n",
             message_of(error)),
         kHowToSave);
  }
}

}  // namespace tiltflow
