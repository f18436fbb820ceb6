"""Folders that a real node can't mount: each is told as what it is, in time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.errors import RuntimeFault, SpecInvalidError
from activities.ports import ContainerState
from activities.runtimes.kubernetes import KubernetesRuntime
from activities.runtimes.open import RuntimeMode
from tests.namespaces import own_namespace
from tests.runtimes.conftest import House, no_stage, spec_of
from tests.runtimes.test_kubernetes import pods_of, with_options, within
from tests.runtimes.waiting import until

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.KUBERNETES


@pytest.fixture
def nowhere(house: House, tmp_path: Path) -> Iterator[Path]:
    """The folder behind the house's volume, which isn't there any more."""
    before = house.settings
    with own_namespace(tmp_path / "away" / "data") as settings:
        folder = Path(settings["PROJECTS_ROOT"])
        folder.rmdir()
        with_options(house, namespace=settings["KUBERNETES_NAMESPACE"])
        yield folder
        house.settings = before


async def test_a_volume_whose_folder_is_away_is_said_and_leaves_nothing(house: House, nowhere: Path) -> None:
    runtime = await house.open()
    ref = house.project()
    with pytest.raises(SpecInvalidError, match="volume can't be mounted") as raised:
        await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert str(nowhere) in str(raised.value)
    assert await runtime.discover() == []

    async def no_pod_stays() -> bool:  # they follow their Deployment by the cluster's own doing
        return all("deletionTimestamp" in pod["metadata"] for pod in pods_of(house, ref))

    await until(no_pod_stays, within_s=60)  # as k8s/README.md says


async def test_a_folder_that_is_a_file_is_said(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = await house.open()
    ref = house.project()
    folder = house.folder(ref)
    folder.rmdir()
    folder.write_text("a file")
    with pytest.raises(SpecInvalidError, match="isn't a folder"):
        await within(10, runtime.launch(spec_of(ref), on_stage=no_stage))
    # Put there a moment later, it is the node's to say.
    monkeypatch.setattr(KubernetesRuntime, "_check_folders", lambda self, ref: None)
    with pytest.raises(SpecInvalidError) as raised:
        await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert "refuses" in str(raised.value)
    assert await runtime.discover() == []
    monkeypatch.undo()
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    status = await within(60, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert status.state is ContainerState.RUNNING


async def test_a_cache_that_is_a_file_is_said(house: House) -> None:
    runtime = await house.open()
    ref = house.project(user_id=8)
    cache = house.folder(ref).parents[1] / "cache"
    cache.write_text("a file")
    with pytest.raises(RuntimeFault, match="cache") as raised:
        await within(10, runtime.launch(spec_of(ref), on_stage=no_stage))
    assert not raised.value.retryable
    cache.unlink()
