/** IndexedDB, where the browser keeps conversations, batch runs and recipes. */

/** A database of the browser; it is opened when it is used. */
export class Database {
  #opening = null;

  /**
   * @param {string} name
   * @param {Object<string, string|string[]|null>} stores name -> where values have their key; null: beside the value.
   * @param {number} [version] one more for each change of the stores.
   */
  constructor(name, stores, version = 1) {
    Object.assign(this, { name, stores, version });
  }

  #open() {
    this.#opening ??= new Promise((resolve, reject) => {
      const request = indexedDB.open(this.name, this.version);
      request.onupgradeneeded = () => {
        const { result } = request;
        for (const [name, keyPath] of Object.entries(this.stores))
          if (!result.objectStoreNames.contains(name)) result.createObjectStore(name, { keyPath });
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    this.#opening.catch(() => (this.#opening = null));
    return this.#opening;
  }

  /**
   * Does something in one transaction, with all stores.
   * @param {"readonly"|"readwrite"} mode
   * @param {function(...IDBObjectStore): IDBRequest|void} body gets the stores in their order.
   * @returns {Promise<*>} what its request gave, after the transaction is complete.
   */
  async transact(mode, body) {
    const names = Object.keys(this.stores);
    const transaction = (await this.#open()).transaction(names, mode);
    return new Promise((resolve, reject) => {
      const request = body(...names.map((name) => transaction.objectStore(name)));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }
}
