#ifndef FH_CONTROL
#define FH_CONTROL
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/csrc/inductor/cpp_prefix.h>
#include <sched.h>
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
// A program without Python runs kernels too.
#pragma weak Py_IsInitialized
#pragma weak PyGILState_Ensure
#pragma weak PyGILState_Release
#pragma weak PyGILState_Check
#pragma weak PyEval_SaveThread
#pragma weak PyEval_RestoreThread
#pragma weak PyErr_CheckSignals
#pragma weak PyErr_Fetch
#pragma weak PyErr_Restore
#pragma weak PyErr_SetInterrupt
#pragma weak Py_AddPendingCall
#pragma weak PySys_GetObject
#pragma weak PyDict_GetItemString
#pragma weak PyObject_GetAttrString
#pragma weak PyLong_AsLongLong
#pragma weak PyList_New
#pragma weak PyList_Append
#pragma weak PyList_Reverse
#pragma weak Py_BuildValue
#pragma weak PyObject_CallFunction
// Before Python 3.13 macros give these two other names, which a pragma does not see.
#pragma weak _Py_BuildValue_SizeT
#pragma weak _PyObject_CallFunction_SizeT
#pragma weak PyErr_Clear
#pragma weak PyErr_Occurred
#pragma weak _Py_Dealloc
namespace fh {
// In nanoseconds; <chrono> and <thread> would take the compiler as long as a kernel does.
static inline int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}
// A loop that has loops in its steps. ``length``: -1 if unknown.
struct Level { int64_t step, length; Level* outer; };
// Of one thread. ``caller``: that of the thread that waits for it, the only one that may call Python.
// ``block``: that of the lanes which run now, or how many are done; ``last``: the latest loop as it ended; ``ended``: the
// outermost ones that did, if anybody watches.
// ``notes``: what Python does not know yet of effects. ``released``: the thread without Python's lock, as it was with it.
struct Control {
  int64_t work = 0;  // elements computed since the last look
  int64_t block = 0, blocks = 1;
  Level* level = nullptr;
  Level last{0, -1, nullptr};
  std::vector<Level> ended;
  bool is_watched = false;
  std::atomic<bool> stopped{false};
  int64_t next_look = 0;
  Control* caller = nullptr;
  std::shared_ptr<void> notes;
  PyThreadState* released = nullptr;
};
struct Raised { PyObject *type, *value, *traceback; };
static int raise_again(void* argument) {
  std::unique_ptr<Raised> e(static_cast<Raised*>(argument));
  PyErr_Restore(e->type, e->value, e->traceback);
  return -1;
}
// See NOTE [Watched steps].
static PyObject* watching_module() {
  PyObject* modules = PySys_GetObject("modules");
  return modules ? PyDict_GetItemString(modules, "functorch_hops.lowering.loops.watching") : nullptr;
}
static bool has_python() { return Py_IsInitialized && Py_IsInitialized(); }
static bool is_watched() {
  static const int64_t nobody = 0;
  static std::atomic<const int64_t*> found{nullptr};
  const int64_t* flag = found.load(std::memory_order_relaxed);
  if (!flag) {
    flag = &nobody;
    if (has_python()) {
      auto state = PyGILState_Ensure();
      if (PyObject* module = watching_module())
        if (PyObject* address = PyObject_GetAttrString(module, "address")) {
          flag = reinterpret_cast<const int64_t*>(PyLong_AsLongLong(address));
          Py_DECREF(address);
        }
      PyErr_Clear();
      PyGILState_Release(state);
    }
    found.store(flag, std::memory_order_relaxed);
  }
  return *flag != 0;
}
static void add_level(PyObject* levels, int64_t step, int64_t length) {
  PyObject* pair = Py_BuildValue("(LL)", (long long)step, (long long)length);
  if (pair) PyList_Append(levels, pair);
  Py_XDECREF(pair);
}
// ``inner``: the loop that looks, if it is none of the levels. False with a Python exception.
static bool told(Control& control, const Level* inner, bool has_ended) {
  PyObject* module = watching_module();
  PyObject* levels = module ? PyList_New(0) : nullptr;
  if (!levels) return true;
  if (inner) add_level(levels, inner->step, inner->length);
  const Level* around = has_ended ? nullptr : control.level;
  for (const Level* level = around; level; level = level->outer) add_level(levels, level->step, level->length);
  PyList_Reverse(levels);
  PyObject* report = PyObject_GetAttrString(module, "report");
  PyObject* result = report ? PyObject_CallFunction(report, "Oi", levels, int(has_ended)) : nullptr;
  Py_XDECREF(report);
  Py_DECREF(levels);
  Py_XDECREF(result);
  return result != nullptr;
}
// Behind a loop. ``own``: whether it is a level itself.
static inline void ended(Control& control, bool own) {
  if (control.is_watched && !(own ? control.level->outer : control.level)) control.ended.push_back(control.last);
}
static bool told_ended(Control& control) {
  std::vector<Level> levels;
  levels.swap(control.ended);
  for (const Level& level : levels)
    if (!told(control, &level, true)) return false;
  return true;
}
// What Python raised is raised again as soon as the kernel has returned, before anybody reads what it left.
static void raise_later() {
  auto e = std::make_unique<Raised>();
  PyErr_Fetch(&e->type, &e->value, &e->traceback);
  if (Py_AddPendingCall(raise_again, e.get()) == 0) e.release();
  else PyErr_SetInterrupt();
}
// A kernel that takes long leaves Python to other threads: the main one has to handle signals that come meanwhile. One
// that does not, keeps the lock, as it might have to wait for it longer than it takes.
static void release_python(Control& control) {
  if (!control.released && has_python() && PyGILState_Check()) control.released = PyEval_SaveThread();
}
// Python, while it ends, ends each thread that asks for its lock, which C++ does not survive: such a thread waits.
static void take_python(Control& control) {
  for (const timespec second{1, 0}; !has_python();) nanosleep(&second, nullptr);
  PyEval_RestoreThread(control.released);
}
// Run the handlers of signals that have come, as Python does between its instructions.
static bool handler_raised(Control& control, const Level* inner) {
  if (!has_python()) return false;
  auto state = PyGILState_Ensure();
  bool raised = PyErr_CheckSignals() != 0 || (control.is_watched && !(told_ended(control) && told(control, inner, false)));
  if (raised) raise_later();
  PyGILState_Release(state);
  return raised;
}
static C10_NOINLINE bool interrupted(Control& control, int64_t step = -1, int64_t length = -1) {
  control.work = 0;
  if (control.stopped) return true;
  if (control.caller) return control.stopped = control.caller->stopped.load();
  const int64_t time = now();
  if (time < control.next_look) return false;
  if (control.next_look) release_python(control);
  control.next_look = time + (control.next_look ? 50'000'000 : 5'000'000);
  if (length >= 0) step = (control.block * length + step) / control.blocks;
  const Level here{step, length, nullptr};
  return control.stopped = handler_raised(control, step < 0 ? nullptr : &here);
}
// The loops around a loop, while it runs.
struct Nested {
  Control& control;
  Level level;
  Nested(Control& c, int64_t length) : control(c), level{0, length, c.level} { control.level = &level; }
  ~Nested() { control.level = level.outer; }
};
#ifdef _OPENMP
template <class F>
static void by_threads(int64_t first, int64_t blocks, Control& control, F& run) {
  std::atomic<int64_t> next{first}, done{first};
  std::atomic<bool> has_failed{false};
  std::exception_ptr error;
#pragma omp parallel num_threads(std::min<int64_t>(omp_get_max_threads(), blocks - first))
  {
    const bool is_caller = omp_get_thread_num() == 0;
    Control worker;
    worker.caller = &control;
    Control& own = is_caller ? control : worker;
    try {
      for (int64_t block; !control.stopped && (block = next++) < blocks; ++done) {
        own.block = done;
        run(block, own);
      }
    } catch (...) {
      if (!has_failed.exchange(true)) error = std::current_exception();
      control.stopped = true;
    }
    while (is_caller && done < blocks && !interrupted(control)) sched_yield();
  }
  if (error) std::rethrow_exception(error);
}
#endif
// Blocks that don't depend on one another, on as many threads as torch has where that pays. ``nanoseconds``: what they
// take on one thread, or 0 if nobody knows; then this one begins alone.
template <class F>
static void each_block(int64_t blocks, int64_t nanoseconds, Control& control, F&& run) {
  int64_t block = 0;
  control.blocks = blocks;
#ifdef _OPENMP
  constexpr int64_t enough = FH_ENOUGH;
  const bool may_pay = blocks > 1 && (nanoseconds == 0 || nanoseconds >= enough);
  if (may_pay && omp_get_max_threads() > 1 && !omp_in_parallel()) {
    const int64_t end = now() + enough;
    if (nanoseconds == 0)
      while (block < blocks && !control.stopped && now() < end) run(control.block = block++, control);
    if (block + 1 < blocks && !control.stopped) {
      by_threads(block, blocks, control, run);
      block = blocks;
    }
  }
#endif
  for (; block < blocks && !control.stopped; ++block) run(control.block = block, control);
  control.block = 0, control.blocks = 1;
}
// Bools are held as floats; the compiler, left alone, converts them one by one.
template <class From, class To>
static C10_ALWAYS_INLINE void copy_lanes(const From* from, To* to, int64_t count) {
  int64_t i = 0;
#if defined(__GNUC__)
  if constexpr (!std::is_same_v<From, To>) {
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    typedef int32_t Ints __attribute__((vector_size(64)));
    typedef float Floats __attribute__((vector_size(64)));
    using Given = std::conditional_t<sizeof(From) == 1, Bytes, Floats>;
    using Result = std::conditional_t<sizeof(To) == 1, Bytes, Floats>;
    for (; i + 16 <= count; i += 16) {
      Given x;
      std::memcpy(&x, from + i, sizeof(x));
      Result y = __builtin_convertvector(__builtin_convertvector(x, Ints), Result);
      std::memcpy(to + i, &y, sizeof(y));
    }
  }
#endif
  std::copy_n(from + i, count - i, to + i);
}
// What was summed of a few steps goes to the sum of all, and begins anew.
template <class T> static C10_ALWAYS_INLINE void add_lanes(T* from, double* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] += from[i];
    from[i] = 0;
  }
}
template <class T> static C10_ALWAYS_INLINE void store_lanes(const double* from, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(from[i]);
}
// Whether any of these is not zero; none is -0.
static C10_ALWAYS_INLINE bool any(const float* x, int64_t count) {
  bool found = false;
  int64_t i = 0;
#if INDUCTOR_USE_VECTOR_TYPES()
  using V = at::vec::Vectorized<float>;
  constexpr int S = V::size();
  if (count >= S) {
    V lanes = V::loadu(x);
    for (i = S; i + S <= count; i += S) lanes = lanes | V::loadu(x + i);
    found = lanes.zero_mask() != int((int64_t(1) << S) - 1);
  }
#endif
  for (; i < count; ++i) found |= x[i] != 0.0f;
  return found;
}
// Fresh memory comes in pages of 2 MiB where the system offers them: faults for each 4 KiB cost more than a loop.
static inline void will_fill([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) & ~(page - 1);
  uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(page - 1);
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}
// Random numbers by count: see NOTE [Numbers by count].
static inline float uniform(int64_t key, int64_t count) {
  return float(at::Philox4_32(key, 0, count)() >> 8) * 0x1p-24f;
}
static inline float normal(int64_t key, int64_t count) { return at::Philox4_32(key, 0, count).randn(10); }
static inline int64_t integer(int64_t key, int64_t count, int64_t low, int64_t high) {
  at::Philox4_32 engine(key, 0, count);
  const uint64_t first = engine(), second = engine();
  return low + int64_t((first << 32 | second) % uint64_t(high - low));
}
struct Call {
  Control control;
  std::unique_ptr<char, decltype(&std::free)> workspace;
  explicit Call(size_t bytes)
      : workspace(bytes ? static_cast<char*>(std::aligned_alloc(64, bytes)) : nullptr, &std::free) {
    if (bytes && !workspace) throw std::bad_alloc();
    control.is_watched = is_watched();
  }
  ~Call() {
    if (control.released) take_python(control);
    if (!control.is_watched || !has_python()) return;
    auto state = PyGILState_Ensure();
    if (!PyErr_Occurred() && !told_ended(control)) raise_later();
    PyGILState_Release(state);
  }
};
}
#endif
