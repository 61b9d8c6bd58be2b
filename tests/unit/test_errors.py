import pickle

from chancellor import errors


def test_message_and_hint_are_both_shown() -> None:
    error = errors.UnknownModelError("There is no model 'x'.", hint="It has: y.")
    assert str(error) == "There is no model 'x'.\nIt has: y."


def test_every_class_says_what_to_do_next() -> None:
    for name in errors.__all__:
        assert getattr(errors, name)("Something happened.").hint.strip()


def test_errors_cross_process_borders() -> None:
    error = errors.PromptTooLongError("Too long.", hint="Shorten it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.PromptTooLongError
    assert (again.message, again.hint) == ("Too long.", "Shorten it.")


def test_unknown_choice_lists_the_choices() -> None:
    error = errors.UnknownChoiceError.of("scheme", "int3", ["int8", "int8wo"])
    assert "'int3'" in error.message
    assert "int8, int8wo" in error.hint
