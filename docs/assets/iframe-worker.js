// Browsers start no worker for a page that lies in the file system. The search's worker then runs in a hidden
// frame of the page: it finds there what a worker has, `postMessage` and an `importScripts` that returns a promise.
if (location.protocol === "file:") {
  const inTheFrame = `
    postMessage = (data) => frameElement.worker.dispatchEvent(new MessageEvent("message", { data }));
    importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((loaded) => {
      document.body.append(Object.assign(document.createElement("script"), { src: url, onload: loaded }));
    })), Promise.resolve());
  `;
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, worker: this });
      this.frame.srcdoc = `<body><script>${inTheFrame}</script><script src="${url}"></script></body>`;
      this.ready = new Promise((loaded) => { this.frame.onload = loaded; });
      document.body.append(this.frame);
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
