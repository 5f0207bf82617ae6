#include "tiltflow/reward/torchscript.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <mutex>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/device.h"

namespace tiltflow {
namespace {

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

class TorchScriptReward final : public Reward {
 public:
  TorchScriptReward(torch::jit::Module module, std::string file) : module_(std::move(module)), file_(std::move(file)), labelled_(module_.get_method("forward").num_inputs() > 2) {
    module_.eval();
    info_.name = cat("torchscript ", file_);
  }
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& samples, const RewardCondition& condition) const override {
    std::vector<c10::IValue> inputs{to_compute_device(samples)};
    if (labelled_) {
      if (!condition.labels.defined()) fail(ErrorKind::kConfig, cat(file_, ": the module wants labels"), "set labels.kind");
      inputs.emplace_back(to_compute_device(condition.labels));
    }
    try {
      const std::lock_guard lock(mutex_);  // the first calls specialise the graph
      const c10::IValue out = module_.forward(inputs);
      if (!out.isTensor()) fail(ErrorKind::kConfig, cat(file_, ": forward must return a tensor"));
      const at::Tensor score = beside(samples, out.toTensor());
      return score.dim() == 2 && score.size(1) == 1 ? score.squeeze(1) : score;
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      fail(ErrorKind::kConfig, cat(file_, ": the module failed: ", first_line(error.what())), "it is called with images [N, C, H, W] in [0, 1] and must return [N]");
    }
  }

 private:
  mutable torch::jit::Module module_;
  mutable std::mutex mutex_;
  std::string file_;
  bool labelled_;
  RewardInfo info_;
};

}  // namespace

std::shared_ptr<const Reward> make_torchscript(const RewardTerm& term) {
  if (term.file.empty()) fail(ErrorKind::kConfig, "reward torchscript: file is missing", "a module saved with torch.jit.save");
  try {
    torch::jit::Module module = torch::jit::load(term.file, compute_device());
    if (!module.find_method("forward")) fail(ErrorKind::kBadFile, cat(term.file, ": the module has no method forward"));
    for (const at::Tensor& parameter : module.parameters()) parameter.set_requires_grad(false);
    return std::make_shared<TorchScriptReward>(std::move(module), term.file);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    fail(ErrorKind::kBadFile, cat(term.file, ": not a TorchScript module: ", first_line(error.what())), "save it with torch.jit.save(torch.jit.script(module), FILE)");
  }
}

}  // namespace tiltflow
