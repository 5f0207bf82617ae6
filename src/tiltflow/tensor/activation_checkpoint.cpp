#include "tiltflow/tensor/activation_checkpoint.h"

#include <torch/csrc/autograd/custom_function.h>

#include <memory>

#include "tiltflow/tensor/aten.h"

namespace tiltflow {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Recompute : torch::CustomClassHolder {
  explicit Recompute(TensorFunction f) : fn(std::move(f)) {}
  TensorFunction fn;
};

struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
  static at::Tensor forward(AutogradContext* context, const std::shared_ptr<TensorFunction>& fn,
                            at::TensorList list) {
    variable_list inputs = list.vec();
    at::Tensor out;
    {
      const at::NoGradGuard no_grad;
      out = (*fn)(inputs);
    }
    c10::List<bool> wanted;
    for (const at::Tensor& input : inputs) {
      wanted.push_back(input.defined() && input.requires_grad());
    }
    context->saved_data["fn"] = c10::IValue::make_capsule(c10::make_intrusive<Recompute>(*fn));
    context->saved_data["wanted"] = wanted;
    context->save_for_backward(std::move(inputs));
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto recompute =
        c10::static_intrusive_pointer_cast<Recompute>(context->saved_data["fn"].toCapsule());
    const c10::List<bool> wanted = context->saved_data["wanted"].toBoolList();
    const variable_list saved = context->get_saved_variables();
    variable_list inputs, roots;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      at::Tensor input = saved[i].defined() ? saved[i].detach() : saved[i];
      if (wanted.get(i)) roots.push_back(input.set_requires_grad(true));
      inputs.push_back(input);
    }
    variable_list found;
    {
      const at::AutoGradMode grad(true);
      const at::Tensor out = recompute->fn(inputs);
      found = torch::autograd::grad({out}, roots, {gradients[0]}, /*retain_graph=*/false,
                                    /*create_graph=*/false, /*allow_unused=*/true);
    }
    variable_list result{at::Tensor()};  // no gradient for `fn`
    for (std::size_t i = 0, next = 0; i < saved.size(); ++i) {
      result.push_back(wanted.get(i) ? found[next++] : at::Tensor());
    }
    return result;
  }
};

}  // namespace

at::Tensor checkpoint(TensorFunction fn, const std::vector<at::Tensor>& inputs) {
  if (!at::GradMode::is_enabled()) return fn(inputs);
  return CheckpointFunction::apply(std::make_shared<TensorFunction>(std::move(fn)),
                                   at::TensorList(inputs));
}

}  // namespace tiltflow
