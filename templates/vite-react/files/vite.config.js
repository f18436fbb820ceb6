import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

const { HOST, PORT, STUDIO_PREVIEW_HOST } = process.env

export default defineConfig({
  plugins: [react()],
  server: {
    host: HOST ?? '127.0.0.1',
    port: Number(PORT ?? 5173),
    strictPort: true,
    // The preview address of this project; localhost is always allowed.
    allowedHosts: STUDIO_PREVIEW_HOST ? [STUDIO_PREVIEW_HOST] : [],
    // The studio's own folder: nothing in there belongs to the app.
    watch: { ignored: ['**/.studio/**'] },
  },
})
