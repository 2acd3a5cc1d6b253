// One picture from the camera, as a file.

const dialog = document.getElementById("camera-dialog");
const video = document.getElementById("video");
let stream = null;

export function setUpCamera(take, complain) {
  const button = document.getElementById("camera");
  if (!navigator.mediaDevices?.getUserMedia) {
    button.hidden = true; // browsers hand the camera to https and to this machine only
    return;
  }
  button.addEventListener("click", async () => {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    } catch {
      complain("No camera: there is none, or this page may not use it.");
      return;
    }
    video.srcObject = stream;
    await video.play();
    dialog.showModal();
  });
  document.getElementById("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => stream?.getTracks().forEach((track) => track.stop()));
  document.getElementById("shoot").addEventListener("click", () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 }).then((blob) => {
      take([new File([blob], "camera.jpg", { type: "image/jpeg" })]);
    });
    dialog.close();
  });
}
