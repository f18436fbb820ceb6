// Serves this folder as it is, and reloads the page when a file changes. Nothing is built or bundled.
const { HOST, PORT, STUDIO_PREVIEW_HOST } = process.env

export default {
  appType: 'mpa',
  cacheDir: 'node_modules/.vite',
  optimizeDeps: { noDiscovery: true },
  server: {
    host: HOST ?? '127.0.0.1',
    port: Number(PORT ?? 5173),
    strictPort: true,
    allowedHosts: STUDIO_PREVIEW_HOST ? [STUDIO_PREVIEW_HOST] : [],
    // The studio's own folder: nothing in there belongs to the app.
    watch: { ignored: ['**/.studio/**'] },
  },
}
