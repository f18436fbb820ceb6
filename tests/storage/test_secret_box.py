import pytest

from storage.secret_box import SecretBox, SecretUnreadableError

OLD, NEW = "o" * 32, "n" * 32


def test_what_was_closed_is_opened_again() -> None:
    closed = SecretBox(NEW).encrypt(b"value\0", "env")

    assert b"value" not in closed
    assert SecretBox(NEW).decrypt(closed, "env") == b"value\0"


def test_another_purpose_does_not_open_it() -> None:
    with pytest.raises(SecretUnreadableError):
        SecretBox(NEW).decrypt(SecretBox(NEW).encrypt(b"value", "env"), "idempotency")


def test_a_rotated_key_opens_the_old_and_closes_with_the_new() -> None:
    rotated = SecretBox(NEW, (OLD,))

    assert rotated.decrypt(SecretBox(OLD).encrypt(b"value", "env"), "env") == b"value"
    with pytest.raises(SecretUnreadableError):
        SecretBox(OLD).decrypt(rotated.encrypt(b"value", "env"), "env")


def test_a_key_that_was_dropped_opens_nothing() -> None:
    with pytest.raises(SecretUnreadableError):
        SecretBox(NEW).decrypt(SecretBox(OLD).encrypt(b"value", "env"), "env")


def test_derived_keys_differ_by_purpose_and_secret_only() -> None:
    assert SecretBox(NEW).derive("jwt") == SecretBox(NEW, (OLD,)).derive("jwt")
    assert len({SecretBox(key).derive(purpose) for key in (OLD, NEW) for purpose in ("jwt", "csrf")}) == 4
