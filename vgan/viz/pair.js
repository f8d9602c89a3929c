// One video holds both clips side by side: drawn on two canvases they run in step, and come as one file.
function showPair(video, left, right) {
  const draw = () => {
    const width = video.videoWidth / 2, height = video.videoHeight;
    [left, right].forEach((canvas, side) => {
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      canvas.getContext("2d").drawImage(video, side * width, 0, width, height, 0, 0, width, height);
    });
  };
  const again = () => {
    if (video.readyState >= 2) draw();
    requestAnimationFrame(again);
  };
  again();
}
