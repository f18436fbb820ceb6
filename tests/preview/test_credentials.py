"""What is ours in a request and what is the app's."""

import pytest

from api.preview.credentials import foreign_cookies, token_in, without_token


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ([], None),
        (["studio_preview=x"], None),
        (["studio_preview=x; studio_preview_frame=y; studio_refresh=z"], None),
        (["a=1; studio_preview=x; b=2"], "a=1; b=2"),
        (["studio_preview=x; a=1"], "a=1"),
        (["a=1;b=2"], "a=1;b=2"),
        (["a", 'b="x=y"', "studio_preview=x"], 'a;b="x=y"'),
        ([" studio_preview = x ;a=studio_preview"], "a=studio_preview"),
        (["my_studio_preview=1; studio_preview2=2"], "my_studio_preview=1; studio_preview2=2"),
    ],
)
def test_only_our_cookies_are_taken_out(headers: list[str], kept: str | None) -> None:
    assert foreign_cookies(headers) == kept


@pytest.mark.parametrize(
    ("uri", "token", "clean"),
    [
        ("/", None, "/"),
        ("/?token=theirs", None, "/?token=theirs"),
        ("/?token=pvt_a", "pvt_a", "/"),
        ("/x?a=%20&token=pvt_a&b", "pvt_a", "/x?a=%20&b"),
        ("/x?mytoken=pvt_a", None, "/x?mytoken=pvt_a"),
        ("/x?token=theirs&token=pvt_a", "pvt_a", "/x?token=theirs"),
    ],
)
def test_an_apps_own_token_is_none_of_our_business(uri: str, token: str | None, clean: str) -> None:
    assert token_in(uri) == token
    assert without_token(uri) == clean
