#include "tiltflow/models/stated_identity.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tiltflow/base/strings.h"

namespace tiltflow {
namespace {

using Metadata = std::map<std::string, std::string>;

struct Synonym {
  const char* theirs;
  const char* ours;
};
constexpr Synonym kConstructor[] = {{"num_heads", "num_heads"},
                                    {"n_heads", "num_heads"},
                                    {"heads", "num_heads"},
                                    {"num_attention_heads", "num_heads"},
                                    {"patch_size", "patch_size"},
                                    {"in_channels", "in_channels"},
                                    {"hidden_size", "hidden_size"},
                                    {"depth", "depth"},
                                    {"mlp_ratio", "mlp_ratio"},
                                    {"num_classes", "num_classes"},
                                    {"learn_sigma", "learn_sigma"},
                                    {"class_dropout_prob", "class_dropout_prob"},
                                    {"input_size", "input_size"},
                                    {"latent_size", "input_size"},
                                    {"image_size", "image_size"},
                                    {"model", "model"},
                                    {"model_name", "model"},
                                    {"model_type", "model"},
                                    {"arch", "model"}};
constexpr const char* kPathNames[] = {"path_type", "interpolant", "interpolant_type"};
constexpr const char* kPredictionNames[] = {"prediction", "prediction_type", "parameterization",
                                            "parametrization"};
constexpr const char* kSwitches[] = {"qk_norm",    "use_qknorm",  "use_rope",
                                     "use_swiglu", "use_rmsnorm", "wo_shift"};
// Parts of a configuration whose sizes are those of something else.
constexpr const char* kOtherParts[] = {"vae",     "first_stage",  "autoencoder", "encoder",
                                       "decoder", "text_encoder", "optim",       "sched",
                                       "data",    "loader",       "loss",        "discriminator",
                                       "teacher", "tokenizer",    "clip"};
constexpr Synonym kPaths[] = {{"linear", "linear"}, {"gvp", "gvp"}, {"vp", "vp"}};
constexpr Synonym kPredictions[] = {{"velocity", "velocity"},
                                    {"noise", "noise"},
                                    {"score", "score"},
                                    {"epsilon", "noise"},
                                    {"eps", "noise"}};

template <std::size_t n>
bool contains(const char* const (&names)[n], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

template <std::size_t n>
const char* translated(const Synonym (&table)[n], std::string_view name) {
  const auto* found = std::find_if(std::begin(table), std::end(table),
                                   [&](const Synonym& s) { return name == s.theirs; });
  return found == std::end(table) ? nullptr : found->ours;
}

// Lower case, and underscores as in Python.
std::string normal(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return c == '-' ? '_' : std::tolower(c); });
  return text;
}

void flatten(const std::string& name, const nlohmann::json& value, Metadata& out, int depth) {
  if (depth > 8) return;
  if (!value.is_object()) {
    out[name] = value.is_string() ? value.get<std::string>() : value.dump();
    return;
  }
  for (const auto& [key, part] : value.items()) flatten(cat(name, ".", key), part, out, depth + 1);
}

// With JSON objects as dotted keys, except in our own entries.
Metadata flat(const Metadata& metadata) {
  Metadata out;
  for (const auto& [key, text] : metadata) {
    const bool ours =
        starts_with(key, "tiltflow.") && key != "tiltflow.path" && key != "tiltflow.prediction";
    if (ours) continue;
    const nlohmann::json value =
        starts_with(text, "{") ? nlohmann::json::parse(text, nullptr, false) : nlohmann::json();
    if (value.is_object()) {
      flatten(key, value, out, 0);
    } else {
      out[key] = text;
    }
  }
  return out;
}

bool describes_something_else(const std::vector<std::string>& parts) {
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    for (const char* word : kOtherParts) {
      if (starts_with(normal(parts[i]), word)) return true;
    }
  }
  return false;
}

// One more place that says something: it must say the same as the places before.
void add(Stated& stated, const std::string& source, const std::string& value) {
  if (stated.value.empty()) {
    stated.value = value;
    stated.source = source;
  } else if (stated.value != value && stated.problem.empty()) {
    stated.problem = cat(stated.source, " and ", source, " contradict each other");
  }
}

template <std::size_t n>
void add_choice(Stated& stated, const std::string& key, const std::string& text,
                const Synonym (&known)[n]) {
  const std::string source = cat(key, " = '", text, "'");
  const std::string word = normal(text.substr(text.rfind('.') + 1));  // PathType.LINEAR
  if (const char* value = translated(known, word)) {
    add(stated, source, value);
  } else if (stated.problem.empty()) {
    stated.problem = cat(source, " is not understood");
  }
}

// The name that a dotted key is about: interpolant.type is about the interpolant.
std::string subject(const std::vector<std::string>& parts) {
  const std::string last = normal(parts.back());
  const bool general = last == "type" || last == "name" || last == "kind";
  if (!general || parts.size() < 2) return last;
  const std::string before = normal(parts[parts.size() - 2]);
  return contains(kPathNames, before) || contains(kPredictionNames, before) ? before : last;
}

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.';
}

// What a text says of `name`: the word after it in "--name word", "name=word", "name: word" or
// "('name', 'word')".
std::string said_in_text(const std::string& text, const std::string& name) {
  const std::string lower = normal(text);
  for (std::size_t at = lower.find(name); at != std::string::npos; at = lower.find(name, at + 1)) {
    const std::size_t next = at + name.size();
    const std::size_t begin = std::min(lower.find_first_not_of(" '\":=,\t", next), text.size());
    const bool option = at >= 2 && text.compare(at - 2, 2, "--") == 0;
    const bool whole = option || at == 0 || !is_word(lower[at - 1]);
    const bool assigned =
        text.substr(next, begin - next).find_first_of("'\":=,") != std::string::npos;
    if (!whole || begin == next || !(option || assigned)) continue;
    std::size_t end = begin;
    while (end < text.size() && is_word(text[end])) ++end;
    if (end > begin) return text.substr(begin, end - begin);
  }
  return "";
}

// YAML, command lines and printed Namespaces in a trainer's arguments. They count where nothing
// else says it, and where the word is one of ours: a text may be about anything.
template <std::size_t n, std::size_t m>
void read_texts(const Metadata& metadata, const char* const (&names)[n], const Synonym (&known)[m],
                Stated& stated) {
  if (!stated.value.empty() || !stated.problem.empty()) return;
  for (const auto& [key, text] : metadata) {
    for (const char* name : names) {
      const std::string word = said_in_text(text, name);
      const bool ours = translated(known, normal(word)) != nullptr;
      if (ours) add_choice(stated, cat(key, " (a text): ", name), word, known);
    }
  }
}

// The quoted words of values without names: "A('GVP', 'noise', 4)" of a NamedTuple, "['GVP', 4]" of
// a list.
std::vector<std::string> unnamed_words(const std::string& text) {
  const bool values = !text.empty() && (text.back() == ')' || text.back() == ']');
  const bool opened = std::all_of(
      text.begin(),
      text.begin() + static_cast<std::ptrdiff_t>(std::min(text.find_first_of("(["), text.size())),
      is_word);
  if (!values || !opened) return {};
  std::vector<std::string> out;
  const std::vector<std::string> parts = split(text, '\'');
  for (std::size_t i = 1; i < parts.size(); i += 2) out.push_back(parts[i]);
  return out;
}

// A word of ours that stands in no named value may be the answer, and may be something else.
template <std::size_t m>
void refuse_unnamed(const Metadata& metadata, const Synonym (&known)[m], const char* what,
                    Stated& stated) {
  if (!stated.value.empty() || !stated.problem.empty()) return;
  for (const auto& [key, text] : metadata) {
    for (const std::string& word : unnamed_words(text)) {
      const char* ours = translated(known, normal(word));
      const bool usual = ours == known[0].ours;
      if (ours && !usual) {
        stated.problem = cat(key, " holds '", word, "' without a name: is it the ", what, "?");
      }
    }
  }
}

// "4.0" is the whole number 4, "False" is false.
std::string plain(const std::string& text) {
  if (text == "True" || text == "true") return "true";
  if (text == "False" || text == "false") return "false";
  return text.size() > 2 && ends_with(text, ".0") ? text.substr(0, text.size() - 2) : text;
}

}  // namespace

bool states_identity(const std::string& key) {
  const std::string name = subject(split(key, '.'));
  return key == "tiltflow.path" || key == "tiltflow.prediction" || contains(kPathNames, name) ||
         contains(kPredictionNames, name) || translated(kConstructor, name);
}

Metadata without_identity(const Metadata& metadata) {
  Metadata out;
  for (const auto& [key, text] : metadata) {
    if (states_identity(key)) continue;
    const Metadata parts = flat({{key, text}});
    const auto states = [](const auto& part) { return states_identity(part.first); };
    if (std::none_of(parts.begin(), parts.end(), states)) {
      out[key] = text;
    } else {
      std::copy_if(parts.begin(), parts.end(), std::inserter(out, out.end()), std::not_fn(states));
    }
  }
  return out;
}

StatedIdentity stated_identity(const Metadata& metadata) {
  StatedIdentity out;
  const Metadata all = flat(metadata);
  for (const auto& [key, text] : all) {
    if (text.empty() || text == "None" || text == "null") continue;
    const std::vector<std::string> parts = split(key, '.');
    const std::string name = subject(parts);
    if (key == "tiltflow.path" || contains(kPathNames, name)) {
      add_choice(out.path, key, text, kPaths);
    } else if (key == "tiltflow.prediction" || contains(kPredictionNames, name)) {
      add_choice(out.prediction, key, text, kPredictions);
    } else if (describes_something_else(parts)) {
      continue;
    } else if (const char* ours = translated(kConstructor, name)) {
      add(out.args[ours], cat(key, " = '", text, "'"), plain(text));
    } else if (contains(kSwitches, name) && plain(text) == "true") {
      out.unsupported.push_back(cat(key, " = ", text));
    }
  }
  read_texts(all, kPathNames, kPaths, out.path);
  read_texts(all, kPredictionNames, kPredictions, out.prediction);
  refuse_unnamed(all, kPaths, "path", out.path);
  refuse_unnamed(all, kPredictions, "prediction", out.prediction);
  return out;
}

}  // namespace tiltflow
