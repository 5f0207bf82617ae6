#include "tiltflow/reward/aesthetic.h"

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/clip/vision.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/precision.h"

namespace tiltflow {

AestheticHead::AestheticHead(const std::filesystem::path& file) {
  const ParameterSet t = read_tensors(file).tensors;
  std::vector<std::pair<at::Tensor, at::Tensor>> layers;
  for (const int i : {0, 2, 4, 6, 7}) {
    const std::string name = cat("layers.", i);
    if (!t.contains(name + ".weight") || !t.contains(name + ".bias")) {
      fail(ErrorKind::kBadFile,
           cat(file.string(), ": no aesthetic head ('", name, ".weight' or its bias is missing)"),
           "expected layers.{0,2,4,6,7}");
    }
    const at::Tensor weight = t.at(name + ".weight").to(at::kFloat);
    const at::Tensor bias = t.at(name + ".bias").to(at::kFloat);
    const bool fits = weight.dim() == 2 && bias.dim() == 1 && bias.size(0) == weight.size(0) &&
                      (layers.empty() || layers.back().first.size(0) == weight.size(1)) &&
                      (i != 7 || weight.size(0) == 1);
    if (!fits) {
      fail(ErrorKind::kBadFile, cat(file.string(), ": '", name, "' ", shape_text(weight.sizes()),
                                    " does not fit the layer before it"));
    }
    require_finite(weight, cat(file.string(), ": ", name));
    require_finite(bias, cat(file.string(), ": ", name));
    layers.emplace_back(weight.to(at::kDouble), bias.to(at::kDouble));
  }
  at::Tensor w = layers.back().first;
  at::Tensor b = layers.back().second;  // from the last layer to the first: w (W x + c) + b = (w W)
                                        // x + (w c + b)
  for (std::size_t i = layers.size() - 1; i-- > 0;) {
    b = at::mv(w, layers[i].second) + b;
    w = at::mm(w, layers[i].first);
  }
  weight_ = w.to(at::kFloat);
  bias_ = b.item<double>();
}

at::Tensor AestheticHead::score(const at::Tensor& embeddings) const {
  return at::linear(embeddings / embeddings.norm(2, -1, true), weight_).squeeze(1) + bias_;
}

namespace {

class Aesthetic final : public Reward {
 public:
  Aesthetic(std::shared_ptr<const ClipVision> clip, AestheticHead head)
      : clip_(std::move(clip)), head_(std::move(head)) {}
  const RewardInfo& info() const override { return info_; }
  at::Tensor score(const at::Tensor& images, const RewardCondition&) const override {
    if (images.dim() != 4) {
      fail(ErrorKind::kConfig, "reward aesthetic scores images, the model makes vectors");
    }
    return head_.score(clip_->embed_images(images));
  }

 private:
  std::shared_ptr<const ClipVision> clip_;
  AestheticHead head_;
  RewardInfo info_{"aesthetic", true,
                   "Schuhmann 2022, improved-aesthetic-predictor; Radford et al. 2021"};
};

}  // namespace

std::shared_ptr<const Reward> make_aesthetic(const RewardTerm& term) {
  if (term.clip.empty() || term.head.empty()) {
    fail(ErrorKind::kConfig, "reward aesthetic needs clip and head",
         "clip = \"clip-vit-large-patch14\", head = \"sac+logos+ava1-l14-linearMSE.pth\"");
  }
  auto clip = load_clip_vision(term.clip, term.args);
  AestheticHead head(term.head);
  if (head.width() != clip->config().projection) {
    fail(ErrorKind::kConfig,
         cat("the aesthetic head takes ", head.width(), " features, this CLIP gives ",
             clip->config().projection),
         "the published head belongs to CLIP ViT-L/14");
  }
  return std::make_shared<Aesthetic>(std::move(clip), std::move(head));
}

}  // namespace tiltflow
