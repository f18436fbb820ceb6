(() => {
  const STATE_TYPE = 'application/vnd.studio.preview+json';
  const RETRY_TYPE = 'application/vnd.studio.preview.retry+json';
  const STAGES = { pulling: 'Fetching', creating: 'Preparing', starting: 'Starting', probing: 'First answer' };
  const part = (id) => document.getElementById(id);
  const first = JSON.parse(part('state').textContent);
  if (!first) return;

  function show(state) {
    part('page').dataset.tone = state.tone;
    document.title = part('title').textContent = state.title;
    part('text').textContent = state.text;
    part('log').textContent = state.log_tail || '';
    part('log').hidden = !state.log_tail;
    part('log').scrollTop = part('log').scrollHeight;
    const names = Object.keys(STAGES);
    const now = names.indexOf(state.stage);
    part('stages').hidden = state.tone !== 'busy' || now < 0;
    part('stages').replaceChildren(...names.map((name, index) => {
      const item = document.createElement('li');
      item.textContent = STAGES[name];
      if (index < now) item.dataset.done = '';
      if (index === now) item.dataset.now = '';
      return item;
    }));
    part('action').replaceChildren(...(state.can_retry ? [startButton(state.tone === 'calm' ? 'Start' : 'Start again')] : []));
  }

  function startButton(label) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = label;
    button.addEventListener('click', () => { button.disabled = true; ask(RETRY_TYPE); });
    return button;
  }

  // Another kind of answer than ours is the app's own: it runs.
  async function ask(accept) {
    try {
      const answer = await fetch(location.href, { headers: { Accept: accept }, cache: 'no-store', redirect: 'manual' });
      const type = answer.headers.get('Content-Type') || '';
      if (type.startsWith(STATE_TYPE)) show(await answer.json());
      else if (answer.status < 500 && answer.status !== 401) location.reload();
    } catch {
      // The proxy or the network is away for a moment: ask again.
    }
  }

  async function watch() {
    for (let wait = 250; ; wait = Math.min(wait * 1.1, 2000)) {
      await new Promise((done) => setTimeout(done, wait));
      if (!document.hidden) await ask(STATE_TYPE);
    }
  }

  show(first);
  watch();
})();
