#include "tiltflow/eval/quality.h"

#include <algorithm>
#include <cmath>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/io/npz.h"
#include "tiltflow/io/safetensors.h"
#include "tiltflow/io/tensor_file.h"
#include "tiltflow/models/clip/vision.h"
#include "tiltflow/models/model_file.h"
#include "tiltflow/tensor/aten.h"
#include "tiltflow/tensor/parallel.h"

namespace tiltflow {

FeatureNetwork make_feature_network(const std::string& name) {
  if (name == "pixels") return {name, [](const at::Tensor& images) { return images.flatten(1); }};
  const bool folder = std::filesystem::is_directory(name);
  if (!folder) {
    const TensorFile file = read_tensors(name);
    if (model_family(file.tensors, file.metadata) == "classifier") {
      const auto judge = load_classifier(name);
      return {name, [judge](const at::Tensor& images) { return judge->features(images); }};
    }
  }
  const auto clip = load_clip_vision(name);
  return {name, [clip](const at::Tensor& images) { return clip->embed_images(images); }};
}

namespace {

bool is_numpy(const std::filesystem::path& file) {
  return file.extension() == ".npz" || file.extension() == ".npy";
}

FeatureMoments moments_of_npz(const std::filesystem::path& file) {
  const ParameterSet t = read_npz(file, {"mu", "sigma"});
  if (t.contains("mu") && t.contains("sigma")) {
    return {t.at("mu").to(at::kDouble), t.at("sigma").to(at::kDouble), 0};
  }
  const std::vector<std::string> names = npz_names(file);
  const bool pictures = std::find(names.begin(), names.end(), "arr_0") != names.end();
  fail(ErrorKind::kBadFile,
       cat(file.string(), ": no feature statistics ('mu' and 'sigma'); it has ",
           names.empty() ? "no arrays" : join(names, ", ")),
       pictures ? "pictures (arr_0) are given as --data FILE --format numpy"
                : "make them with --make-reference");
}

FeatureMoments moments_of_tensors(const std::filesystem::path& file) {
  const ParameterSet t = read_safetensors(file).tensors;
  if (!t.contains("mean") || !t.contains("covariance")) {
    fail(ErrorKind::kBadFile,
         cat(file.string(), ": no feature statistics ('mean' and 'covariance')"),
         "make them with --make-reference");
  }
  const bool counted = t.contains("count") && t.at("count").numel() == 1;
  return {t.at("mean").to(at::kDouble), t.at("covariance").to(at::kDouble),
          counted ? t.at("count").item<double>() : 0};
}

}  // namespace

FeatureMoments read_moments(const std::filesystem::path& file) {
  const FeatureMoments m = is_numpy(file) ? moments_of_npz(file) : moments_of_tensors(file);
  const auto bad = [&](const std::string& what) {
    fail(ErrorKind::kBadFile, cat(file.string(), ": ", what));
  };
  const std::int64_t n = m.mean.numel();
  if (m.mean.dim() != 1 || m.covariance.sizes() != at::IntArrayRef{n, n}) {
    bad(cat("a mean ", shape_text(m.mean.sizes()), " and a covariance ",
            shape_text(m.covariance.sizes()), " do not fit each other"));
  }
  if (!m.covariance.isfinite().all().item<bool>() || !m.mean.isfinite().all().item<bool>()) {
    bad("mean and covariance are not finite");
  }
  const double skew = (m.covariance - m.covariance.t()).abs().max().item<double>();
  if (skew > 1e-4 * m.covariance.abs().max().item<double>()) bad("the covariance is not symmetric");
  return m;
}

void require_two_pictures(std::int64_t pictures, const std::string& what) {
  if (pictures >= 2) return;
  fail(ErrorKind::kBadFile,
       cat(what,
           ": statistics need at least 2 pictures, and more than there are features for a regular "
           "covariance; found ",
           pictures),
       "a Frechet distance usually stands on 10,000 pictures and more");
}

std::string singular_note(std::int64_t pictures, std::int64_t features, const std::string& what) {
  if (pictures > features) return "";
  return cat(what, ": statistics of ", pictures, " pictures in ", features,
             " features have a singular covariance; the Frechet distance needs more than ",
             features, " of them");
}

void require_same_features(const FeatureNetwork& network, const FeatureMoments& reference,
                           at::IntArrayRef shape, const Decoder& decode) {
  std::vector<std::int64_t> one{1};
  one.insert(one.end(), shape.begin(), shape.end());
  const std::int64_t found = features_of(network, at::zeros(one), decode).size(1);
  const std::int64_t expected = reference.mean.numel();
  if (found != expected) {
    fail(ErrorKind::kBadFile,
         cat("the reference has statistics of ", expected, " features, ", network.name, " makes ",
             found, " of the model's pictures"),
         "they were made with another network (--features), or from pictures of another size or "
         "number of channels (--size, --channels)");
  }
}

void write_moments(const std::filesystem::path& file, const FeatureMoments& m,
                   const std::string& network) {
  ParameterSet t;
  if (file.extension() == ".npz") {
    t.add("mu", m.mean);
    t.add("sigma", m.covariance);
    write_npz(file, t);
    return;
  }
  t.add("mean", m.mean);
  t.add("covariance", m.covariance);
  t.add("count", at::full({1}, m.count, at::kDouble));
  write_safetensors(file, t, {{"what", "moments of image features"}, {"features", network}});
}

at::Tensor features_of(const FeatureNetwork& network, const at::Tensor& states,
                       const Decoder& decode) {
  constexpr std::int64_t kPiece = 32;
  std::vector<at::Tensor> parts(static_cast<std::size_t>((states.size(0) + kPiece - 1) / kPiece));
  parallel_chunks(states.size(0), kPiece, [&](std::int64_t begin, std::int64_t end) {
    const at::NoGradGuard no_grad;
    parts[static_cast<std::size_t>(begin / kPiece)] =
        network.features(decode(states.narrow(0, begin, end - begin)).clamp(0, 1));
  });
  return at::cat(parts);
}

namespace {

// Row i: distances from a[i] to all of b; rows are made in pieces to bound memory.
void for_rows(const at::Tensor& a, const at::Tensor& b,
              const std::function<void(std::int64_t first, const at::Tensor& distances)>& use) {
  constexpr std::int64_t kRows = 512;
  for (std::int64_t i = 0; i < a.size(0); i += kRows) {
    use(i, at::cdist(a.narrow(0, i, std::min(kRows, a.size(0) - i)), b));
  }
}

at::Tensor neighbour_radius(const at::Tensor& x, std::int64_t k) {
  std::vector<at::Tensor> parts;
  for_rows(x, x, [&](std::int64_t, const at::Tensor& d) {
    parts.push_back(std::get<0>(d.kthvalue(std::min(k + 1, x.size(0)), 1)));
  });  // itself is the nearest
  return at::cat(parts);
}

Estimate share_inside(const at::Tensor& points, const at::Tensor& centers,
                      const at::Tensor& radius) {
  std::vector<at::Tensor> inside;
  for_rows(points, centers, [&](std::int64_t, const at::Tensor& d) {
    inside.push_back((d <= radius.unsqueeze(0)).any(1));
  });
  return mean_estimate(at::cat(inside).to(at::kDouble));
}

}  // namespace

Estimate diversity(const at::Tensor& features) {
  const at::Tensor x = features.to(at::kFloat);
  const auto n = static_cast<double>(x.size(0));
  std::vector<at::Tensor> means;
  for_rows(x, x, [&](std::int64_t, const at::Tensor& d) {
    means.push_back(d.to(at::kDouble).sum(1) / (n - 1));
  });
  const Estimate e = mean_estimate(at::cat(means));
  return {e.value, 2 * e.se};  // every pair counts for both its members
}

Estimate frechet_extrapolated(const at::Tensor& features, const FeatureMoments& reference,
                              const RandomStreams& streams) {
  const std::int64_t n = features.size(0);
  if (n < 100) {
    fail(ErrorKind::kFailure,
         cat("the Frechet distance is extrapolated from 100 samples or more, not ", n));
  }
  constexpr int kOrders = 8;
  constexpr int kSizes = 5;
  std::vector<double> intercepts;
  for (int order = 0; order < kOrders; ++order) {
    const std::vector<std::int64_t> shuffled =
        streams.permutation(Purpose::kProbe, static_cast<std::uint32_t>(order), n);
    const at::Tensor index = at::tensor(shuffled, at::kLong);
    double sx = 0;
    double sy = 0;
    double sxx = 0;
    double sxy = 0;
    for (int j = 0; j < kSizes; ++j) {
      const std::int64_t size = n / 4 + (n - n / 4) * j / (kSizes - 1);
      const double x = 1 / static_cast<double>(size);
      const double y = frechet_distance(
          feature_moments(features.index_select(0, index.narrow(0, 0, size))), reference);
      sx += x;
      sy += y;
      sxx += x * x;
      sxy += x * y;
    }
    const double slope = (kSizes * sxy - sx * sy) / (kSizes * sxx - sx * sx);
    intercepts.push_back((sy - slope * sx) / kSizes);
  }
  const at::Tensor values = at::tensor(intercepts, at::kDouble);
  return {values.mean().item<double>(), values.std().item<double>()};
}

PrecisionRecall precision_recall(const at::Tensor& features, const at::Tensor& real,
                                 std::int64_t k) {
  const at::Tensor a = features.to(at::kFloat);
  const at::Tensor b = real.to(at::kFloat);
  return {share_inside(a, b, neighbour_radius(b, k)), share_inside(b, a, neighbour_radius(a, k))};
}

}  // namespace tiltflow
