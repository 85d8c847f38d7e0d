#ifndef FH_RAISED
#define FH_RAISED
namespace fh {
// Keep what Python raised; what it was, in words.
static std::string raised() {
  PyObject *type, *error, *traceback;
  PyErr_Fetch(&type, &error, &traceback);
  PyErr_NormalizeException(&type, &error, &traceback);
  if (traceback) PyException_SetTraceback(error, traceback);
  PyObject* modules = PySys_GetObject("modules");
  PyObject* module = modules ? PyDict_GetItemString(modules, "functorch_hops.lowering.loops.happening") : nullptr;
  if (PyObject* state = module ? PyObject_GetAttrString(module, "_state") : nullptr) {
    PyObject_SetAttrString(state, "raised", error);
    Py_DECREF(state);
  }
  std::string words = std::string("Python raised ") + Py_TYPE(error)->tp_name;
  PyObject* message = PyObject_Str(error);
  if (const char* text = message ? PyUnicode_AsUTF8(message) : nullptr) words += std::string(": ") + text;
  Py_XDECREF(message);
  Py_XDECREF(type);
  Py_XDECREF(error);
  Py_XDECREF(traceback);
  PyErr_Clear();
  return words;
}
}
#endif
