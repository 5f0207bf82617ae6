#include "tiltflow/flow/prediction.h"

#include <algorithm>

#include "tiltflow/base/error.h"
#include "tiltflow/base/strings.h"
#include "tiltflow/tensor/aten.h"

namespace tiltflow {

const std::vector<std::string>& predictions() {
  static const std::vector<std::string> names{"velocity", "noise", "score"};
  return names;
}

PredictionField::PredictionField(std::shared_ptr<const VelocityField> field,
                                 std::shared_ptr<const Path> path, const std::string& prediction)
    : field_(std::move(field)), path_(std::move(path)), prediction_(prediction) {
  const auto& known = predictions();
  if (std::find(known.begin(), known.end(), prediction) == known.end()) {
    fail(ErrorKind::kConfig,
         cat("prediction '", prediction, "' is unknown", did_you_mean(prediction, known)),
         "use velocity, noise or score");
  }
}

at::Tensor PredictionField::velocity(const at::Tensor& x, const at::Tensor& t,
                                     const Condition& condition) const {
  const at::Tensor out = field_->velocity(x, t, condition);
  if (prediction_ == "velocity") return out;
  const std::vector<PathPoint> points = path_points(*path_, t);
  const auto convert = [&](const PathPoint& p, const at::Tensor& state, const at::Tensor& value) {
    return prediction_ == "noise" ? velocity_from_noise(p, state, value)
                                  : velocity_from_score(p, state, value);
  };
  if (points.size() == 1) return convert(points[0], x, out);
  std::vector<at::Tensor> rows;
  for (std::int64_t i = 0; i < x.size(0); ++i) {
    rows.push_back(convert(points[static_cast<std::size_t>(i)], x[i], out[i]));
  }
  return at::stack(rows);
}

TimeEnds ode_ends(const Path& path, const std::string& prediction, double epsilon) {
  if (path.name() == "vp") return {0, 1 - epsilon};
  return prediction == "velocity" ? TimeEnds{0, 1} : TimeEnds{epsilon, 1 - epsilon};
}

}  // namespace tiltflow
