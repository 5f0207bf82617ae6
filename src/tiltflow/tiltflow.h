// Everything that a program needs which uses tiltflow as a library. docs/extending.md shows how.
// Cost: about three seconds of compile time, half of them for the tensor class of libtorch; its
// methods (x.mean(1)) work. Operators and functions (x - y, at::cat) need ATen/ATen.h as
// well: six seconds more.
#pragma once

#include "tiltflow/base/error.h"             // Error, exit_code
#include "tiltflow/base/log.h"               // how much is said on stderr
#include "tiltflow/config/fields.h"          // load_config
#include "tiltflow/eval/run_check.h"         // check_run: the tilted-law check of a run
#include "tiltflow/eval/tilted_check.h"      // the same for any two fields
#include "tiltflow/finetune/methods.h"       // fine-tuning methods, FinetuneMethod for your own
#include "tiltflow/io/image.h"               // pictures to files
#include "tiltflow/io/safetensors.h"         // tensors to files and back
#include "tiltflow/models/flow_model.h"      // models, VelocityModel for your own
#include "tiltflow/models/runtime_config.h"  // threads, device, precision
#include "tiltflow/policy/lora.h"            // adapters
#include "tiltflow/policy/policy.h"          // base, tuned field, trainable weights
#include "tiltflow/reward/reward.h"          // rewards, Reward for your own
#include "tiltflow/reward/state_reward.h"    // the same seen from a model's states
#include "tiltflow/sampler/fields.h"         // guidance
#include "tiltflow/sampler/labels.h"         // class labels of samples
#include "tiltflow/sampler/likelihood.h"     // log-densities under the flow's ODE
#include "tiltflow/sampler/sample.h"         // samplers
#include "tiltflow/tensor/statistics.h"      // means with standard errors
#include "tiltflow/train/finetuning.h"       // fine-tuning
#include "tiltflow/train/run.h"              // run directories
