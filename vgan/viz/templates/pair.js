// Draw the two halves of one video on two canvases: as one file, both clips stay in sync.
function showPair(video, left, right) {
  const draw = () => {
    const width = video.videoWidth / 2, height = video.videoHeight;
    [left, right].forEach((canvas, side) => {
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      canvas.getContext("2d").drawImage(video, side * width, 0, width, height, 0, 0, width, height);
    });
  };
  const drawFrame = () => {
    if (video.readyState >= 2) draw();
    requestAnimationFrame(drawFrame);
  };
  drawFrame();
}
