// Control networks: small networks that are added to a frozen velocity. They see state, time and
// label, and start at zero.
//   mlp      flattened state through hidden layers, each modulated by time and label: for vectors
//   and small images conv     3x3 convolutions with group normalisation, each modulated: keeps the
//   image's layout, size-independent lowrank  B ((1 + s(c)) A x + h(c)): a low-rank linear map of
//   the state whose middle depends on time and label potential  the gradient in the state of a
//   scalar network N of mlp's form: the control of a value function alpha N + const, for value
//   regression
#pragma once

#include <map>
#include <string>

#include "tiltflow/flow/velocity_field.h"
#include "tiltflow/tensor/parameters.h"
#include "tiltflow/tensor/random.h"

namespace tiltflow {

struct ControlConfig {
  std::string kind = "conv";  // mlp, conv, lowrank, potential
  std::int64_t width = 64;    // hidden units or channels; lowrank: the rank
  std::int64_t depth = 3;     // hidden layers; lowrank has none
};
const std::vector<std::string>& control_kinds();

// `shape`: of one sample, [C, H, W] or [d]. `classes`: 0 = no label table; else classes + 1 rows,
// the last for "none". The output layer is zero. Throws kConfig for conv on vectors.
ParameterSet init_control(const ControlConfig& config, const std::vector<std::int64_t>& shape,
                          std::int64_t classes, const RandomStreams& streams);
// x [N, ...], t [N] in [0, 1], labels [N] or undefined -> like x.
// potential: grad_x N; with a graph (of second order) when gradients are on.
at::Tensor control_output(const ControlConfig& config, const ParameterSet& parameters,
                          const at::Tensor& x, const at::Tensor& t, const Condition& condition);

// N(x, t, labels) of kind potential, [N].
at::Tensor control_potential(const ControlConfig& config, const ParameterSet& parameters,
                             const at::Tensor& x, const at::Tensor& t, const Condition& condition);

}  // namespace tiltflow
