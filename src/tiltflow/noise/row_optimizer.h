// Optimisers of one vector each: many small independent searches share network calls but nothing
// else, so that a row's path does not depend on its neighbours. The owner evaluates loss and
// gradient at the point a row asks for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace tiltflow {

using Retraction = std::function<void(std::vector<double>& x)>;  // back onto the set that is
                                                                 // searched; may be empty

class RowOptimizer {
 public:
  virtual ~RowOptimizer() = default;
  // Loss and gradient at the current trial point `x` -> the next trial point, in place. `progress`
  // in [0, 1): share of the steps done. False: there is nothing left to gain (or the start is not
  // finite), and x stays.
  virtual bool step(double loss, const std::vector<double>& gradient, std::vector<double>& x,
                    double progress) = 0;
};

// Adam (Kingma & Ba 2015), step size falling to zero along a cosine.
std::unique_ptr<RowOptimizer> make_row_adam(double learning_rate, Retraction retract);

struct LbfgsOptions {
  std::int64_t memory = 8;
  double first_step = 0.3;  // length of the first step
  double largest_step =
      2;  // of any step; the radius grows and shrinks with how well steps do what was predicted
};
// L-BFGS (Nocedal 1980) with a trust radius instead of a line search: one evaluation a step. A
// trial point that is not better is left again, but its gradient is learned from.
std::unique_ptr<RowOptimizer> make_row_lbfgs(const LbfgsOptions& options, Retraction retract);

}  // namespace tiltflow
