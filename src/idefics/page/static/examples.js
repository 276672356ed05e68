/** The drawer of examples: pictures with the answers that they should have, as recipes, by hand and as a file. */

import { button, count, element, iconButton, saveFile } from "./dom.js";
import { exampleCard } from "./examplecard.js";
import { toPicture } from "./pictures.js";
import { RECIPES, deleteRecipe, listSavedRecipes, saveRecipe, shotsOfRecipe } from "./recipes.js";
import { readShots, toJsonLines } from "./shotsfile.js";
import { completeShots, newId } from "./state.js";

export const TITLE = "Examples";

const MAX_SHOTS = 15; // where the model does not say how many pictures a request may have
const DELETE = "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13";

/**
 * Fills the drawer.
 * @param {HTMLElement} root
 * @param {Object} app see app.js.
 * @returns {function(): void} to call when it is closed.
 */
export function open(root, app) {
  const drawer = new ExamplesDrawer(root, app);
  return app.state.subscribe("shots", () => drawer.show());
}

class ExamplesDrawer {
  constructor(root, app) {
    Object.assign(this, { root, app, state: app.state });
    this.maxShots = (app.state.model?.images.max_images ?? MAX_SHOTS + 1) - 1;
    this.recipes = element("div.recipes", { role: "group", "aria-label": "Recipes" });
    this.list = element("ol.example-list");
    this.error = element("p.error", { role: "alert", hidden: true });
    this.note = element("p.hint");
    this.kept = element("p.hint", { role: "status" });
    this.file = element("div.example-buttons");
    root.append(
      element("p.hint", {
        text: "Show the model what an answer should be like. Examples come before every question; not in a chat.",
      }),
      element("section.group", {}, element("h3", { text: "Recipes" }), this.recipes),
      element(
        "section.group",
        {},
        element("h3", { text: "Your examples" }),
        this.note,
        this.list,
        this.addButtons(),
        this.error,
      ),
      element("section.group", {}, element("h3", { text: "Keep them" }), this.keepForm(), this.kept, this.file),
    );
    root.addEventListener("idefics-files", (event) => {
      event.preventDefault();
      void this.addPictures(event.detail);
    });
    this.showFileButtons();
    this.show();
    void this.showRecipes();
  }

  get shots() {
    return this.state.conversation.shots;
  }

  /** Does something that may fail; an error stands in the drawer. */
  async attempt(work) {
    this.error.hidden = true;
    try {
      await work();
    } catch (error) {
      this.error.textContent = error.message;
      this.error.hidden = false;
      this.error.scrollIntoView({ block: "nearest" });
    }
  }

  toPicture = (file) => toPicture(file, this.state.model?.images);

  async showRecipes() {
    const own = await listSavedRecipes().catch(() => []);
    this.recipes.replaceChildren(
      ...RECIPES.map((recipe) => button(recipe.name, () => this.attempt(() => this.useRecipe(recipe)))),
      ...own.map((recipe) => this.ownRecipe(recipe)),
    );
  }

  ownRecipe(recipe) {
    const use = button(recipe.name, () => {
      this.replaceShots(recipe.shots.map(copyShot), recipe.name);
      this.useTask(recipe);
    });
    const remove = iconButton(`Delete the recipe ${recipe.name}`, DELETE, () =>
      this.attempt(async () => {
        await deleteRecipe(recipe.name);
        await this.showRecipes();
        this.recipes.querySelector("button").focus();
        this.app.confirmUndo(`The recipe ${recipe.name} is deleted.`, () =>
          this.attempt(() => this.keepRecipe(recipe)),
        );
      }),
    );
    return element("span.own-recipe", {}, use, remove);
  }

  async keepRecipe(recipe) {
    await saveRecipe(recipe);
    await this.showRecipes();
  }

  async useRecipe(recipe) {
    const shots = await shotsOfRecipe(recipe, this.app.api.fetchBundledPicture, this.toPicture);
    this.replaceShots(shots, recipe.name);
    this.useTask(recipe);
  }

  /** Puts what a recipe asks into the composer, unless something is typed there. */
  useTask({ task, words }) {
    const { state } = this;
    if (!task || state.drafts[state.task]?.trim()) return;
    state.setTask(task);
    if (words) state.setDraft(task, words);
  }

  replaceShots(shots, name) {
    const before = this.shots;
    this.setShots(shots);
    this.used = { name, shots: this.shots };
    this.show();
    const said = `${name}: ${count(shots.length, "example")}.`;
    if (before.length) this.confirmUndo(`${said} Those before are replaced.`, before);
    else this.app.announce(said);
  }

  confirmUndo(message, before) {
    this.app.confirmUndo(message, () => this.setShots(before), this.state.conversation);
  }

  /** Replaces the examples, as many as fit. */
  setShots(shots) {
    this.error.hidden = true;
    if (shots.length > this.maxShots) {
      const numLeftOut = shots.length - this.maxShots;
      this.error.textContent = `A question takes at most ${this.maxShots} examples: ${numLeftOut} left out.`;
      this.error.hidden = false;
    }
    this.state.setShots(shots.slice(0, this.maxShots));
  }

  addPictures(files) {
    return this.attempt(async () => {
      const pictures = await Promise.all(files.map(this.toPicture));
      this.addShots(pictures.map((picture) => ({ id: newId(), picture, question: "", answer: "" })));
    });
  }

  addButtons() {
    const files = element("input.example-files", { type: "file", accept: "image/*", multiple: true, hidden: true });
    files.addEventListener("change", async () => {
      await this.addPictures([...files.files]);
      files.value = "";
    });
    this.clear = button("Remove all", () => {
      const before = this.shots;
      this.setShots([]);
      this.confirmUndo(`${count(before.length, "example")} removed.`, before);
      this.recipes.querySelector("button").focus();
    });
    this.useShown = button("Use the picture and its answer", () => this.addShots([this.shotOfStage()]));
    return element(
      "div.example-buttons",
      {},
      files,
      button("Add pictures", () => files.click()),
      this.useShown,
      this.clear,
    );
  }

  /** The picture on the stage, with the last answer about it to start from. */
  shotOfStage() {
    const picture = this.state.activePicture;
    const { turns } = this.state.conversation;
    const turn = turns.findLast((one) => one.pictureIds[0] === picture.id && one.text);
    const asked = turn && ["ask", "write", "chat"].includes(turn.task) ? turn.words : "";
    return { id: newId(), picture, question: asked, answer: turn?.text ?? "" };
  }

  addShots(shots) {
    const first = this.shots.length;
    this.setShots([...this.shots, ...shots]);
    this.list.children[first]?.querySelector("textarea").focus();
  }

  keepForm() {
    const name = element("input.text-field", {
      type: "text",
      required: true,
      maxlength: 60,
      "aria-label": "Name of the recipe",
      placeholder: "Name",
    });
    const save = element("button.tool", { type: "submit", text: "Save as a recipe" });
    const form = element("form.keep-form", {}, name, save);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.attempt(async () => {
        if (!this.shots.length) throw new Error("There are no examples yet: add one, then save them.");
        const { task, drafts } = this.state;
        const recipe = { name: name.value.trim(), shots: this.shots, task, words: drafts[task] ?? "" };
        const before = (await listSavedRecipes()).find((one) => one.name === recipe.name);
        await this.keepRecipe(recipe);
        name.value = "";
        const undo = () => this.attempt(() => this.keepRecipe(before));
        if (before) this.app.confirmUndo(`The recipe ${recipe.name} is replaced.`, undo);
        this.kept.textContent = before ? "" : `The recipe ${recipe.name} is saved.`;
        this.kept.scrollIntoView({ block: "center" });
      });
    });
    return form;
  }

  showFileButtons() {
    const accept = ".jsonl,.ndjson,image/*";
    const files = element("input.shots-file", { type: "file", accept, multiple: true, hidden: true });
    files.addEventListener("change", () =>
      this.attempt(async () => {
        const chosen = [...files.files];
        files.value = "";
        this.replaceShots(await readShots(chosen, this.toPicture, this.app.api.fetchPicture), chosen[0].name);
      }),
    );
    const save = async () =>
      saveFile(new Blob([await toJsonLines(completeShots(this.shots))], { type: "application/jsonl" }), "shots.jsonl");
    this.export = button("Save shots.jsonl", () => this.attempt(save));
    this.file.append(
      files,
      button("Open shots.jsonl", () => files.click()),
      this.export,
    );
  }

  /** Shows the examples; nothing is rebuilt while somebody types in one of them. */
  show() {
    const { shots } = this;
    const from = this.used?.shots === shots ? `From “${this.used.name}”.` : "";
    this.note.textContent = shots.length ? from : "None yet. Take a recipe, or add a picture and write its answer.";
    this.useShown.hidden = !this.state.activePicture;
    this.clear.hidden = !shots.length;
    this.export.disabled = !completeShots(shots).length;
    const shown = [...this.list.children].map((item) => item.dataset.shot).join();
    if (shown !== shots.map(({ id }) => id).join())
      this.list.replaceChildren(...shots.map((shot, index) => this.card(shot, index)));
    shots.forEach(
      (shot, index) =>
        (this.list.children[index].querySelector(".hint").hidden = Boolean(shot.answer.trim())),
    );
  }

  card(shot, index) {
    return exampleCard(shot, index + 1, this.shots.length, {
      url: this.state.pictureUrl(shot.picture),
      change: (fields) => this.change(shot.id, fields),
      move: (step) => this.move(index, step),
      remove: () => this.remove(index),
    });
  }

  /** Changes fields of an example; turns that were asked keep what they had. */
  change(id, fields) {
    this.state.setShots(this.shots.map((shot) => (shot.id === id ? { ...shot, ...fields } : shot)));
  }

  move(index, step) {
    const shots = [...this.shots];
    const [moved] = shots.splice(index, 1);
    shots.splice(index + step, 0, moved);
    this.setShots(shots);
    const tools = this.list.children[index + step].querySelectorAll(".example-tools button");
    const pressed = tools[step < 0 ? 0 : 1];
    (pressed.disabled ? tools[step < 0 ? 1 : 0] : pressed).focus();
    this.app.announce(`Example ${index + step + 1} of ${shots.length}.`);
  }

  remove(index) {
    const before = this.shots;
    this.setShots(before.filter((_, at) => at !== index));
    this.confirmUndo(`Example ${index + 1} is deleted.`, before);
    (
      this.list.children[Math.min(index, this.list.children.length - 1)]?.querySelector("textarea") ??
      this.recipes.querySelector("button")
    ).focus();
  }
}

const copyShot = (shot) => ({ ...shot, id: newId(), picture: { ...shot.picture, id: newId() } });
