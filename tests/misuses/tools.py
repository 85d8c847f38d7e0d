"""Wrong use of the tools. Under jit, what nobody needs is not called."""

import torch

import functorch_hops as fh
from misuses.registry import YES, X, misuse, misuse_captured


@misuse(fh.ArgumentTypeError, "plain")
def assert_max_captures_of_a_plain_function():
    with fh.assert_max_captures(torch.sin, 1):
        pass


@misuse(fh.ArgumentValueError, "plain")
def assert_max_captures_below_zero():
    with fh.assert_max_captures(fh.jit(torch.sin, backend="eager"), -1):
        pass


@misuse(fh.ArgumentTypeError, "plain")
def draw_of_a_function():
    fh.draw(torch.sin, "sin.svg")


@misuse(fh.ArgumentValueError, "plain")
def draw_as_an_unknown_kind():
    fh.draw(fh.make_graph(torch.sin)(X), "sin.png")


@misuse(fh.ArgumentTypeError)
def pure_callback_without_a_description():
    fh.pure_callback(lambda x: x, "like x", X)


@misuse(fh.MetadataMismatchError, "plain captured")
def pure_callback_of_another_shape():
    fh.pure_callback(lambda x: x[:1], X, X)


@misuse(fh.TreeMismatchError, "plain captured")
def pure_callback_of_another_tree():
    fh.pure_callback(lambda x: (x, x), X, X)


@misuse(fh.ArgumentTypeError, "plain captured")
def pure_callback_without_a_derivative():
    fh.grad(lambda x: fh.pure_callback(lambda x: x, x, x).sum())(X)


@misuse(fh.CaptureError, "plain captured")
def pure_callback_in_an_exported_program():
    fh.export(lambda x: fh.pure_callback(lambda x: x, x, x), (X,))


@misuse(fh.ArgumentTypeError)
def explain_with_the_arguments():
    fh.explain(torch.sin, X)


@misuse_captured(fh.ArgumentValueError)
def debug_print_of_an_f_string():
    fh.cond(YES, lambda x: (fh.debug.print(f"{x}"), x)[1], torch.sin, X)


@misuse(fh.ArgumentValueError)
def debug_print_of_what_is_not_given():
    fh.debug.print("{} of {total}", X)


@misuse(fh.ArgumentValueError)
def debug_print_of_what_is_not_shown():
    fh.debug.print("x = %s", X)


@misuse(fh.ArgumentValueError)
def debug_print_that_is_ordered():
    fh.debug.print("{}", X, ordered=True)


@misuse(fh.ArgumentValueError)
def debug_print_of_many_numbers_as_one():
    fh.debug.print("{:.2f}", X)


@misuse(fh.ArgumentValueError)
def debug_print_with_a_brace():
    fh.debug.print("{ {}", X)


@misuse(fh.ArgumentTypeError)
def debug_print_without_a_format():
    fh.debug.print(X)


@misuse(fh.ArgumentTypeError)
def debug_callback_of_no_function():
    fh.debug.callback("log", X)


@misuse(fh.ArgumentTypeError)
def debug_check_of_several_values():
    fh.debug.check(X > 0, "not positive")


@misuse(fh.ArgumentTypeError)
def debug_check_without_a_message():
    fh.debug.check(X.sum() > 0, X)


@misuse(fh.CheckError)
def debug_check_that_fails_in_a_loop():
    fh.scan(lambda c, x: (fh.debug.check(x > 1, "{} is too small", x), (c, None))[1], 0.0, X)


@misuse(fh.CaptureError, "plain captured")
def debug_print_in_an_exported_program():
    fh.export(lambda x: (fh.debug.print("{}", x), x)[1], (X,))


@misuse(fh.TooManyCapturesError, "plain")
def captured_more_often_than_allowed():
    f = fh.jit(lambda x, n: x * n, backend="eager")
    with fh.assert_max_captures(f, 1):
        f(X, 1)
        f(X, 2)


@misuse(fh.ArgumentTypeError, "plain")
def find_nan_of_no_function():
    fh.debug.find_nan(X)


@misuse(fh.ArgumentTypeError, "plain")
def progress_of_a_fraction():
    with fh.progress(total=0.5):
        pass


@misuse(fh.ArgumentValueError, "plain")
def progress_below_zero():
    with fh.progress(total=-1):
        pass


@misuse(fh.ArgumentTypeError, "plain")
def progress_of_an_iterable():
    fh.progress(range(3))


@misuse(fh.ArgumentTypeError)
def annotate_by_a_name_alone():
    fh.annotate("decoder")


@misuse(fh.ArgumentTypeError)
def annotate_by_a_function_as_name():
    fh.annotate(torch.sin, name=torch.cos)


@misuse(fh.ArgumentTypeError)
def annotate_with_a_hint_that_is_no_bool():
    fh.annotate(torch.sin, loop_kernels="no")
