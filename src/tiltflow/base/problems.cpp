#include "tiltflow/base/problems.h"

#include <algorithm>
#include <new>

#include "tiltflow/base/strings.h"

namespace tiltflow {

bool Problems::check(const std::function<void()>& work) { return check("", work); }

bool Problems::check(const std::string& where, const std::function<void()>& work) {
  const std::string prefix = where.empty() ? "" : where + ": ";
  try {
    work();
    return true;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kStopped) throw;
    keep({error.kind(), prefix + error.what(), error.hint()});
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& error) {  // of libtorch, whose messages end with a stack of frames
    const std::string text = error.what();
    keep({ErrorKind::kFailure, prefix + text.substr(0, text.find("\nException raised from"))});
  }
  return false;
}

void Problems::keep(const Error& error) {
  const auto same = [&](const Error& other) { return std::string(other.what()) == error.what(); };
  if (std::none_of(found_.begin(), found_.end(), same)) found_.push_back(error);
}

void Problems::raise() const {
  if (found_.empty()) return;
  if (found_.size() == 1) throw found_.front();
  std::string text = cat(found_.size(), " problems:");
  for (const Error& error : found_) {
    text += cat("\n- ", error.what());
    if (!error.hint().empty()) text += cat("\n  hint: ", error.hint());
  }
  fail(found_.front().kind(), text);
}

}  // namespace tiltflow
