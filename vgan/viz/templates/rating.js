const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const film = at("film"), sides = [at("left"), at("right")], status = at("status");
let watched = false, choose = null, shownAt = 0;

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const pressed = (button) => new Promise((done) => button.addEventListener("click", done, { once: true }));

// Request a path, retrying until the server responds. Votes are idempotent: one that was stored before the connection was lost may be sent again.
async function ask(path, options = {}) {
  for (let wait = 1000; ; wait = Math.min(2 * wait, 15000)) {
    try {
      const answer = await fetch(path, { ...options, headers: { Authorization: "Bearer " + token } });
      if (answer.ok || answer.status === 409) return answer;
      if (answer.status === 401) throw new Error("This link is not valid. Please ask for a new one.");
      if (answer.status < 500 && answer.status !== 429) throw new Error("The study server rejected the request.");
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      status.textContent = "No connection. Retrying; your choices are kept.";
    }
    await pause(wait);
  }
}

const load = async (number) => URL.createObjectURL(await (await ask("clips/" + number)).blob());

function allow(yes) {
  watched = yes;
  sides.forEach((side) => side.setAttribute("aria-disabled", String(!yes)));
}

// Show one pair and return the choice, "left" or "right", which is accepted after the clips have played once in full.
async function compare(clip, prefix) {
  allow(false);
  sides.forEach((side) => side.classList.remove("chosen"));
  status.textContent = prefix + " Please watch both videos.";
  film.src = clip;
  await film.play();
  shownAt = performance.now();
  at("pause").textContent = "Pause";
  const chosen = new Promise((done) => { choose = done; });
  await pause(film.duration * 1000);
  allow(true);
  status.textContent = prefix + " Choose the more realistic one.";
  const side = await chosen;
  at(side).classList.add("chosen");
  allow(false);
  return side;
}

function pick(side) {
  if (watched && choose) choose(side);
}
sides.forEach((side) => side.addEventListener("click", () => pick(side.id)));
addEventListener("keydown", (event) => {
  const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
  if (side && !event.repeat && !event.ctrlKey && !event.altKey && !event.metaKey && !at("stage").hidden) {
    event.preventDefault();
    pick(side);
  }
});
at("pause").addEventListener("click", () => {
  film.paused ? film.play() : film.pause();
  at("pause").textContent = film.paused ? "Play" : "Pause";
});

async function next(text) {
  status.textContent = text;
  at("next").hidden = false;
  at("next").focus();
  await pressed(at("next"));
  at("next").hidden = true;
}

async function run() {
  if (!token) throw new Error("Please open this page with the link that was sent to you.");
  const session = await (await ask("session")).json();
  const count = session.trials.length, before = session.total - count;
  at("intro").hidden = false;
  at("count").textContent = before ? `${count} of ${session.total} comparisons remain.` : `There are ${count} comparisons, after two practice ones.`;
  if (!count) return;
  await pressed(at("start"));
  at("intro").hidden = true;
  at("stage").hidden = false;
  if (!before) {
    for (const { trial, real } of session.practice) {
      const side = await compare(await load(trial), "Practice.");
      await next(side === real ? "Correct: that one is real, the other is scrambled." : `Incorrect: the ${real} one is real, this one is scrambled.`);
    }
    await next(`The practice is over. From now on, there is no feedback. ${count} comparisons follow.`);
  }
  at("bar").max = session.total;
  let clip = load(session.trials[0]);
  for (let i = 0; i < count; i++) {
    const number = before + i + 1, clipUrl = await clip;
    at("bar").value = number - 1;
    if (i + 1 < count) clip = load(session.trials[i + 1]);  // prefetch while the current pair plays
    clip.catch(() => {});
    const side = await compare(clipUrl, `${number} of ${session.total}.`);
    const vote = { trial: session.trials[i], left: side === "left", milliseconds: Math.min(Math.round(performance.now() - shownAt), 3600000) };
    await ask("votes", { method: "POST", body: JSON.stringify(vote) });
    URL.revokeObjectURL(clipUrl);
  }
}

showPair(film, at("left").querySelector("canvas"), at("right").querySelector("canvas"));
run().then(() => {
  at("intro").hidden = at("stage").hidden = true;
  status.textContent = "";
  at("thanks").hidden = false;
  at("thanks").focus();
}).catch((error) => {
  at("intro").hidden = at("stage").hidden = true;
  status.textContent = error.message;
});
