const token = location.hash.slice(1);
const at = (id) => document.getElementById(id);
const film = at("film"), sides = [at("left"), at("right")], status = at("status");
let watched = false, choose = null, shownAt = 0;

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const pressed = (button) => new Promise((done) => button.addEventListener("click", done, { once: true }));

// Asks until there is an answer: a vote that was stored before the network went away is the same when sent again.
async function ask(path, options = {}) {
  for (let wait = 1000; ; wait = Math.min(2 * wait, 15000)) {
    try {
      const answer = await fetch(path, { ...options, headers: { Authorization: "Bearer " + token } });
      if (answer.ok || answer.status === 409) return answer;
      if (answer.status === 401) throw new Error("This link does not work. Please ask for a new one.");
      if (answer.status < 500 && answer.status !== 429) throw new Error("Something is wrong with this study.");
    } catch (fault) {
      if (!(fault instanceof TypeError)) throw fault;
      status.textContent = "No connection. Trying again; nothing is lost.";
    }
    await pause(wait);
  }
}

const load = async (number) => URL.createObjectURL(await (await ask("clips/" + number)).blob());

function allow(yes) {
  watched = yes;
  sides.forEach((side) => side.setAttribute("aria-disabled", String(!yes)));
}

// Shows one pair and returns "left" or "right", once both have been seen for their whole length.
async function compare(clip, say) {
  allow(false);
  sides.forEach((side) => side.classList.remove("chosen"));
  status.textContent = say + " Please watch both videos.";
  film.src = clip;
  await film.play();
  shownAt = performance.now();
  at("pause").textContent = "Pause";
  const chosen = new Promise((done) => { choose = done; });
  await pause(film.duration * 1000);
  allow(true);
  status.textContent = say + " Choose the more realistic one.";
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
  if (!token) throw new Error("Please open this page by the link that you were sent.");
  const found = await (await ask("session")).json();
  const count = found.trials.length, before = found.total - count;
  at("intro").hidden = false;
  at("count").textContent = before ? `${count} of ${found.total} comparisons are left.` : `There are ${count} comparisons, after two for practice.`;
  if (!count) return;
  await pressed(at("start"));
  at("intro").hidden = true;
  at("stage").hidden = false;
  if (!before) {
    for (const { trial, real } of found.practice) {
      const side = await compare(await load(trial), "Practice.");
      await next(side === real ? "Yes: that one is real, the other is scrambled." : `No: the ${real} one is real, this one is scrambled.`);
    }
    await next(`That was practice. From now on nothing tells whether you are right. ${count} comparisons follow.`);
  }
  at("bar").max = found.total;
  let clip = load(found.trials[0]);
  for (let i = 0; i < count; i++) {
    const number = before + i + 1, shown = await clip;
    at("bar").value = number - 1;
    if (i + 1 < count) clip = load(found.trials[i + 1]);  // while this one is looked at
    clip.catch(() => {});
    const side = await compare(shown, `${number} of ${found.total}.`);
    const vote = { trial: found.trials[i], left: side === "left", milliseconds: Math.min(Math.round(performance.now() - shownAt), 3600000) };
    await ask("votes", { method: "POST", body: JSON.stringify(vote) });
    URL.revokeObjectURL(shown);
  }
}

showPair(film, at("left").querySelector("canvas"), at("right").querySelector("canvas"));
run().then(() => {
  at("intro").hidden = at("stage").hidden = true;
  status.textContent = "";
  at("thanks").hidden = false;
  at("thanks").focus();
}).catch((fault) => {
  at("intro").hidden = at("stage").hidden = true;
  status.textContent = fault.message;
});
