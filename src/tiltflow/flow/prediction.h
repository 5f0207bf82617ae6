// Networks that predict noise or score, seen as velocity fields. The last place where the three are
// told apart.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tiltflow/flow/path.h"
#include "tiltflow/flow/velocity_field.h"

namespace tiltflow {

const std::vector<std::string>& predictions();  // velocity, noise, score

// Not defined where the conversion has no limit (t = 0 for noise on linear and gvp): samplers keep
// `epsilon` away.
class PredictionField final : public VelocityField {
 public:
  // Throws kConfig for an unknown prediction.
  PredictionField(std::shared_ptr<const VelocityField> field, std::shared_ptr<const Path> path,
                  const std::string& prediction);
  at::Tensor velocity(const at::Tensor& x, const at::Tensor& t,
                      const Condition& condition) const override;

 private:
  std::shared_ptr<const VelocityField> field_;
  std::shared_ptr<const Path> path_;
  std::string prediction_;
};

// Where time begins and ends for a sampler: inside [0, 1] by `epsilon` where path or prediction is
// singular, as SiT.
struct TimeEnds {
  double begin = 0;
  double end = 1;
};
TimeEnds ode_ends(const Path& path, const std::string& prediction, double epsilon);

}  // namespace tiltflow
