#ifndef FH_LOOK
#define FH_LOOK
#include <time.h>
namespace fh {
// In the steps of a loop of torch's: run the handlers of signals that have come, every 50 ms.
static void look() {
  static thread_local int64_t next = 0;
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  const int64_t now = int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
  if (now < next) return;
  next = now + 50'000'000;
  std::string words;
  auto state = PyGILState_Ensure();
  if (PyErr_CheckSignals() != 0) words = raised();
  PyGILState_Release(state);
  if (!words.empty()) throw std::runtime_error(words);
}
}
#endif
