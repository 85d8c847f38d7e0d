#ifndef FH_RANGES
#define FH_RANGES
// What torch exports of its profiler; its header would take the compiler longer than a kernel does.
struct AtenRecordFunctionOpaque;
struct IValueMapOpaque;
struct C10IValueOpaque;
extern "C" {
int32_t aoti_record_function_start(
    const char*, IValueMapOpaque*, C10IValueOpaque* const*, const uint64_t, AtenRecordFunctionOpaque**);
int32_t aoti_record_function_end(AtenRecordFunctionOpaque*);
}
namespace at {
bool hasCallbacks();
}
namespace fh {
// What runs while it lives has this name in a profile, if one is made. ``steps``: -1 if unknown.
class Range {
 public:
  Range(const char* name, int64_t steps) {
    if (at::hasCallbacks()) begin(name, steps);
  }
  ~Range() {
    if (range_) aoti_record_function_end(range_);
  }
  Range(const Range&) = delete;
 private:
  C10_NOINLINE void begin(const char* name, int64_t steps) {
    std::string shown(name);
    if (steps >= 0) shown += ", " + std::to_string(steps) + " steps";
    aoti_record_function_start(shown.c_str(), nullptr, nullptr, 0, &range_);
  }
  AtenRecordFunctionOpaque* range_ = nullptr;
};
}
#endif
