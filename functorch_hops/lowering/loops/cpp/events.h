#ifndef FH_EVENTS
#define FH_EVENTS
namespace fh {
struct Value { const void* memory; int64_t bytes; };
struct Event {
  int64_t about, number;
  const char* kinds;
  std::initializer_list<Value> values;
  std::initializer_list<int64_t> sizes;
};
struct Note {
  int64_t about, number;
  const char* kinds;
  std::vector<std::string> values;
  std::vector<int64_t> sizes;
  explicit Note(const Event& e) : about(e.about), number(e.number), kinds(e.kinds), sizes(e.sizes) {
    for (const Value& v : e.values) values.emplace_back(static_cast<const char*>(v.memory), v.bytes);
  }
  PyObject* as_tuple() const {
    PyObject* memory = PyList_New(0);
    for (const std::string& v : values) {
      PyObject* bytes = PyBytes_FromStringAndSize(v.data(), v.size());
      PyList_Append(memory, bytes);
      Py_XDECREF(bytes);
    }
    PyObject* lengths = PyList_New(0);
    for (int64_t size : sizes) {
      PyObject* length = PyLong_FromLongLong(size);
      PyList_Append(lengths, length);
      Py_XDECREF(length);
    }
    return Py_BuildValue("(LsNN)", (long long)number, kinds, memory, lengths);
  }
};
using Notes = std::vector<Note>;
static Notes& notes_of(Control& control) {
  if (!control.notes) control.notes = std::make_shared<Notes>();
  return *static_cast<Notes*>(control.notes.get());
}
// Python's answer to the notes: what it raised.
static std::string answer(const Notes& notes) {
  PyObject* modules = PySys_GetObject("modules");
  PyObject* module = modules ? PyDict_GetItemString(modules, "functorch_hops.lowering.loops.happening") : nullptr;
  PyObject* happen = module ? PyObject_GetAttrString(module, "happen") : nullptr;
  if (!happen) return "an effect has nobody to perform it";
  PyObject* events = PyList_New(0);
  for (const Note& note : notes) {
    PyObject* event = note.as_tuple();
    PyList_Append(events, event);
    Py_XDECREF(event);
  }
  PyObject* result = PyObject_CallFunctionObjArgs(happen, events, nullptr);
  Py_DECREF(events);
  Py_DECREF(happen);
  if (!result) return raised();
  Py_DECREF(result);
  return "";
}
static C10_NOINLINE void tell(Control& control) {
  if (control.stopped) return;
  Notes notes;
  notes.swap(notes_of(control));
  if (notes.empty()) return;
  auto state = PyGILState_Ensure();
  std::string words = answer(notes);
  PyGILState_Release(state);
  if (words.empty()) return;
  control.stopped = true;
  throw std::runtime_error(words);
}
[[maybe_unused]] static C10_NOINLINE void happened(Control& control, const Event& event) {
  if (control.stopped) throw std::runtime_error("the kernel was stopped");
  notes_of(control).emplace_back(event);
  tell(control);
}
[[maybe_unused]] static C10_NOINLINE void noted(Control& control, const Event& event) {
  Notes& notes = notes_of(control);
  notes.erase(
      std::remove_if(notes.begin(), notes.end(), [&](const Note& note) { return note.about == event.about; }),
      notes.end());
  notes.emplace_back(event);
}
[[maybe_unused]] static C10_NOINLINE void counted(Control& control, const Event& event) {
  Notes& notes = notes_of(control);
  int64_t count = 1;
  for (Note& note : notes)
    if (note.number == event.number) {
      std::memcpy(&count, note.values[0].data(), sizeof(count));
      ++count;
      std::memcpy(&note.values[0][0], &count, sizeof(count));
      return;
    }
  notes.emplace_back(Event{event.about, event.number, "int64/0", {{&count, sizeof(count)}}, {}});
}
template <class T>
static bool all(const T* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!(static_cast<bool>(x[i] != T(0)))) return false;
  return true;
}
}
#endif