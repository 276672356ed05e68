/** Recipes: named lists of few-shot examples, those that the page knows and those that the browser keeps. */

import { Database } from "./database.js";
import { newId } from "./state.js";

const recipes = new Database("idefics.recipes", { recipes: "name" });
const RECEIPT_SIZE = { width: 420, height: 520 };

/**
 * @typedef {{picture: string|string[], question: string, answer: string}} RecipeShot
 *   picture: the name of a bundled one, or the lines of a receipt that is drawn.
 * @typedef {{name: string, task: string, words: string, shots: RecipeShot[]}} Recipe
 */

/** @type {Recipe[]} */
export const RECIPES = [
  {
    name: "Fun fact",
    task: "caption",
    words: "",
    shots: [
      {
        picture: "tower.png",
        question: "",
        answer: "An image of a tower. Fun fact: towers sway a little in the wind.",
      },
    ],
  },
  {
    name: "JSON receipt",
    task: "ask",
    words: "Write this receipt as JSON.",
    shots: [
      {
        picture: [
          "CORNER BAKERY",
          "14 May 2024",
          "",
          "Rye bread      4.20",
          "2 Croissants   3.60",
          "",
          "TOTAL EUR      7.80",
        ],
        question: "",
        answer: '{"shop": "Corner Bakery", "date": "2024-05-14", "currency": "EUR", "total": 7.80}',
      },
      {
        picture: [
          "CITY BOOKS",
          "2 Dec 2024",
          "",
          "Atlas         31.00",
          "Pencil         1.50",
          "",
          "TOTAL USD     32.50",
        ],
        question: "",
        answer: '{"shop": "City Books", "date": "2024-12-02", "currency": "USD", "total": 32.50}',
      },
    ],
  },
  {
    name: "Count things",
    task: "ask",
    words: "Count the things in the picture.",
    shots: [
      { picture: "shapes.png", question: "", answer: "3 in all: 1 circle, 1 square, 1 star." },
      { picture: "puppy.png", question: "", answer: "4 in all: 2 tulips, 1 puppy, 1 rose." },
    ],
  },
  {
    name: "Another language",
    task: "ask",
    words: "What is in this image?",
    shots: [
      { picture: "picnic.png", question: "", answer: "Un couple, un panier et un sandwich." },
      { picture: "door.png", question: "", answer: "Une porte et une citrouille, la nuit." },
    ],
  },
];

/**
 * The examples of a recipe, with their pictures.
 * @param {Recipe} recipe
 * @param {function(string): Promise<Blob>} fetchBundledPicture see api.js.
 * @param {function(File): Promise<StoredPicture>} toPicture see pictures.js.
 * @returns {Promise<Shot[]>}
 */
export async function shotsOfRecipe(recipe, fetchBundledPicture, toPicture) {
  return Promise.all(
    recipe.shots.map(async ({ picture, question, answer }) => {
      const [name, blob] = Array.isArray(picture)
        ? ["receipt.png", await drawReceipt(picture)]
        : [picture, await fetchBundledPicture(picture)];
      return {
        id: newId(),
        picture: await toPicture(new File([blob], name, { type: blob.type })),
        question,
        answer,
      };
    }),
  );
}

/** A receipt as a picture. @param {string[]} lines @returns {Promise<Blob>} */
function drawReceipt(lines) {
  const { width, height } = RECEIPT_SIZE;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fffef8";
  context.fillRect(0, 0, width, height);
  context.fillStyle = "#222";
  lines.forEach((line, index) => {
    context.font = `${index === 0 || index === lines.length - 1 ? "bold " : ""}32px monospace`;
    context.fillText(line, 24, 64 + 64 * index, width - 48);
  });
  return canvas.convertToBlob({ type: "image/png" });
}

/** What one request on the stored recipes gives. */
const store = (mode, body) =>
  recipes.transact(mode, body).catch(() => {
    throw new Error("The browser does not keep recipes: its storage is full or switched off.");
  });

/** The recipes that the browser keeps, by name. @returns {Promise<{name: string, shots: Shot[]}[]>} */
export const listSavedRecipes = () => store("readonly", (stored) => stored.getAll());

/** Keeps a recipe; one of the same name is replaced. @param {{name: string, shots: Shot[]}} recipe */
export const saveRecipe = (recipe) => store("readwrite", (stored) => stored.put(recipe));

/** Deletes a kept recipe. @param {string} name */
export const deleteRecipe = (name) => store("readwrite", (stored) => stored.delete(name));
